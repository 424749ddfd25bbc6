package container

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"

	"github.com/coder/websocket"
	"github.com/moby/moby/api/pkg/stdcopy"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// attachWebsocket is attach for browsers. The messages are the streams' bytes,
// stdout and stderr mixed: binary since API 1.28, text before. They are copied
// through the daemon, to and from one end of a socket pair whose other end goes
// to the shim.
func (h *handlers) attachWebsocket(w http.ResponseWriter, r *wire.Request) error {
	o := engine.AttachOptions{
		Stdin: true, Stdout: true, Stderr: true, // 1.41 and older didn't ask
		Stream:     r.Bool("stream"),
		Logs:       r.Bool("logs"),
		DetachKeys: r.Query.Get("detachKeys"),
	}
	if !r.Version.Before(42) {
		o.Stdin, o.Stdout, o.Stderr = r.Bool("stdin"), r.Bool("stdout"), r.Bool("stderr")
	}
	kind := websocket.MessageBinary
	if r.Version.Before(28) {
		kind = websocket.MessageText
	}
	o.Hijack = func(raw bool) (*engine.Client, error) {
		ws, err := websocket.Accept(w, r.Request, &websocket.AcceptOptions{OriginPatterns: sameHost(r.Host)})
		if err != nil {
			// Accept has answered already.
			return nil, err
		}
		far, near, err := wire.SocketPair()
		if err != nil {
			_ = ws.Close(websocket.StatusInternalError, "no socket pair")
			return nil, err
		}
		ws.SetReadLimit(-1)
		end := wire.BeginBridge(r.Context())
		go func() {
			defer end()
			bridge(ws, near, kind, raw)
		}()
		return &engine.Client{File: far}, nil
	}
	return h.backend.ContainerAttach(r.Context(), r.Name(), o)
}

// sameHost lets pages from the host that the request was sent to open the
// socket, whatever their port; those of others may not. A client that isn't a
// browser sends no Origin and isn't concerned.
func sameHost(host string) []string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return []string{host, host + ":*"}
}

// bridge copies until either side ends; a websocket can't be half closed.
func bridge(ws *websocket.Conn, near *net.UnixConn, kind websocket.MessageType, raw bool) {
	// The connection outlives the request that made it.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	input := make(chan struct{})
	go func() {
		defer close(input)
		defer near.Close()
		for {
			_, message, err := ws.Reader(ctx)
			if err != nil {
				return
			}
			if _, err := io.Copy(near, message); err != nil {
				return
			}
		}
	}()
	out := messages{ctx, ws, kind}
	var err error
	if raw {
		_, err = io.Copy(out, near)
	} else {
		_, err = stdcopy.StdCopy(out, out, near)
	}
	status := websocket.StatusNormalClosure
	if err != nil && !errors.Is(err, net.ErrClosed) {
		status = websocket.StatusInternalError
	}
	_ = ws.Close(status, "")
	cancel()
	<-input
}

type messages struct {
	ctx  context.Context
	ws   *websocket.Conn
	kind websocket.MessageType
}

func (m messages) Write(p []byte) (int, error) {
	if err := m.ws.Write(m.ctx, m.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
