// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types"
	"golang.org/x/sys/unix"

	"holdfast/internal/beside"
)

// Hijacker takes over connections from HTTP for attach and exec.
type Hijacker struct {
	w    http.ResponseWriter
	r    *Request
	done bool
}

// NewHijacker prepares to take over the connection of r.
func NewHijacker(w http.ResponseWriter, r *Request) *Hijacker { return &Hijacker{w: w, r: r} }

// Taken reports whether the connection was taken over. After that the request
// can no longer be answered.
func (h *Hijacker) Taken() bool { return h.done }

// Hijack writes the response's head (101 if the client requested an upgrade,
// else 200, as in dockerd) and returns the client's socket. For a Unix or TCP
// connection it is the socket itself, which can be passed to another process.
// For any other, such as TLS, it is one end of a socket pair; the daemon copies
// between the other end and the connection until both sides have ended.
func (h *Hijacker) Hijack(raw bool) (*beside.Client, error) {
	if h.done {
		return nil, errors.New("the client's connection was already taken over")
	}
	conn, pending, err := h.take()
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, h.head(raw)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("answer the client: %w", err)
	}
	f, err := socketOf(conn, h.r)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &beside.Client{File: f, Pending: pending}, nil
}

// Hands reports whether the client's connection is a socket that can be passed
// to another process. If it is not, the stream ends with the daemon.
func (h *Hijacker) Hands() bool {
	if h.r.TLS != nil || !h.r.ProtoAtLeast(1, 1) || h.r.ProtoMajor > 1 {
		return false
	}
	hands, _ := h.r.Context().Value(handsKey{}).(bool)
	return hands
}

type handsKey struct{}

// WithConn is an http.Server's ConnContext. It lets Hands find the connection.
func WithConn(ctx context.Context, c net.Conn) context.Context {
	switch c.(type) {
	case *net.UnixConn, *net.TCPConn:
		return context.WithValue(ctx, handsKey{}, true)
	}
	return ctx
}

// TakeOver is Hijack for an answer that is not a raw stream. It returns the
// response's head instead of writing it: 200, with a body that is chunked or
// ends with the connection.
func (h *Hijacker) TakeOver(contentType string, chunked bool) (*beside.Client, []byte, error) {
	if h.done {
		return nil, nil, errors.New("the client's connection was already taken over")
	}
	conn, pending, err := h.take()
	if err != nil {
		return nil, nil, err
	}
	f, err := socketOf(conn, h.r)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	var b strings.Builder
	b.WriteString("HTTP/1.1 200 OK\r\n")
	header := h.w.Header().Clone()
	header.Set("Content-Type", contentType)
	header.Set("Connection", "close")
	header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	header.Del("Content-Length")
	if chunked {
		header.Set("Transfer-Encoding", "chunked")
	}
	_ = header.Write(&b)
	b.WriteString("\r\n")
	return &beside.Client{File: f, Pending: pending}, []byte(b.String()), nil
}

// Bounds on the body of a request whose connection is taken over: in bytes and
// in time.
const (
	droppedBytes = 1 << 20
	droppedTime  = 10 * time.Second
)

// DropBody reads the body of a request. The client's stream begins where the
// body ends. Nothing in the body belongs to the stream: some clients send their
// options there.
func DropBody(w http.ResponseWriter, r *http.Request) error {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil
	}
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(droppedTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("limit the time of the request's body: %w", err)
	}
	n, err := io.CopyN(io.Discard, r.Body, droppedBytes+1)
	switch {
	case n > droppedBytes:
		return Invalid("the request's body is larger than %d bytes, but it does not belong to the stream: end the body before the stream begins", droppedBytes)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Invalid("the request's body has no end: end it before the stream begins")
	case err != io.EOF:
		return Invalid("failed to read the request body: %w", err)
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("lift the time limit of the request's body: %w", err)
	}
	return nil
}

// take ends HTTP's use of the connection, and returns the data that HTTP had
// read ahead.
func (h *Hijacker) take() (net.Conn, []byte, error) {
	if err := DropBody(h.w, h.r.Request); err != nil {
		return nil, nil, err
	}
	conn, rw, err := http.NewResponseController(h.w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("take over the client's connection: %w", err)
	}
	h.done = true
	pending, err := buffered(rw.Reader)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("read what the client has sent: %w", err)
	}
	return conn, pending, nil
}

// head is the response's status line and headers. Since API 1.42 the content
// type of an upgraded stream shows whether it is multiplexed.
func (h *Hijacker) head(raw bool) string {
	var b strings.Builder
	if h.r.Header.Get("Upgrade") != "" {
		kind := types.MediaTypeRawStream
		if !raw && !h.r.Version.Before(42) {
			kind = types.MediaTypeMultiplexedStream
		}
		b.WriteString("HTTP/1.1 101 UPGRADED\r\nContent-Type: " + kind + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n")
	} else {
		b.WriteString("HTTP/1.1 200 OK\r\nContent-Type: " + types.MediaTypeRawStream + "\r\n")
	}
	// The headers that every answer carries (Api-Version, Server, …).
	header := h.w.Header().Clone()
	for _, own := range []string{"Content-Type", "Content-Length", "Connection", "Upgrade"} {
		header.Del(own)
	}
	_ = header.Write(&b)
	b.WriteString("\r\n")
	return b.String()
}

// buffered returns the data that the HTTP server has read beyond the request.
func buffered(r *bufio.Reader) ([]byte, error) {
	n := r.Buffered()
	if n == 0 {
		return nil, nil
	}
	p := make([]byte, n)
	_, err := io.ReadFull(r, p)
	return p, err
}

// socketOf returns the connection as a socket and takes ownership of it.
func socketOf(conn net.Conn, r *Request) (*os.File, error) {
	var f *os.File
	var err error
	switch c := conn.(type) {
	case *net.UnixConn:
		f, err = c.File()
	case *net.TCPConn:
		f, err = c.File()
	default:
		return bridge(conn, BeginBridge(r.Context()))
	}
	if err != nil {
		return nil, fmt.Errorf("duplicate the client's socket: %w", err)
	}
	// The duplicate keeps the socket open, so closing conn does not end the
	// stream.
	conn.Close()
	return f, nil
}

// lingerForClient is how long a client may take to close its connection after
// the other side has ended the stream.
const lingerForClient = 10 * time.Second

// bridge copies between conn and a socket pair, whose other end it returns, and
// calls end when the connection has ended.
func bridge(conn net.Conn, end func()) (*os.File, error) {
	far, near, err := SocketPair()
	if err != nil {
		end()
		return nil, err
	}
	in := make(chan struct{})
	go func() {
		defer close(in)
		_, _ = io.Copy(near, conn)
		_ = near.CloseWrite()
	}()
	go func() {
		defer end()
		defer near.Close()
		defer conn.Close()
		if _, err := io.Copy(conn, near); err != nil {
			return
		}
		// The other side has ended, and all its data is written. If the client
		// is still sending, closing now could reset the connection before the
		// client has read the last bytes. Close only the write side, and let
		// the client close first.
		if half, ok := conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
			return
		}
		if conn.SetReadDeadline(time.Now().Add(lingerForClient)) == nil {
			<-in
		}
	}()
	return far, nil
}

// SocketPair makes two connected stream sockets: far to pass on, near to copy
// through.
func SocketPair() (far *os.File, near *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair for the client: %w", err)
	}
	far = os.NewFile(uintptr(fds[0]), "client")
	end := os.NewFile(uintptr(fds[1]), "client-bridge")
	defer end.Close()
	c, err := net.FileConn(end)
	if err != nil {
		far.Close()
		return nil, nil, fmt.Errorf("make a socket pair for the client: %w", err)
	}
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		far.Close()
		return nil, nil, fmt.Errorf("the socket pair for the client is a %T: %w", c, errdefs.ErrInternal)
	}
	return far, unixConn, nil
}
