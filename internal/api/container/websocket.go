// SPDX-License-Identifier: Apache-2.0

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

// attachWebsocket is attach for browsers. Its messages are the bytes of the
// streams, with stdout and stderr mixed: binary since API 1.28, text before.
// The daemon copies them to and from one end of a socket pair, whose other end
// the shim has.
func (h *handlers) attachWebsocket(w http.ResponseWriter, r *wire.Request) error {
	o := engine.AttachOptions{
		Stdin: true, Stdout: true, Stderr: true, // always on until 1.41
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
		if err := wire.DropBody(w, r.Request); err != nil {
			return nil, err
		}
		ws, err := websocket.Accept(w, r.Request, &websocket.AcceptOptions{
			// Without patterns the library accepts only pages of the same host
			// and port.
			InsecureSkipVerify: wire.OriginChecked(r.Context()),
		})
		if err != nil {
			// Accept has sent the error already.
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

// bridge copies until one side ends. A websocket can't be half closed.
func bridge(ws *websocket.Conn, near *net.UnixConn, kind websocket.MessageType, raw bool) {
	// The connection outlives its request, so the request's context can't be
	// used.
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
