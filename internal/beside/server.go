// SPDX-License-Identifier: Apache-2.0

package beside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/fdpass"
)

// ErrHeld: another such process works for the same daemon.
var ErrHeld = errors.New("another such process runs already")

// lock takes the lock of a process.
func lock(dir string) (unlock func() error, _ error) {
	f, err := os.OpenFile(LockPath(dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrHeld
		}
		return nil, os.NewSyscallError("flock", err)
	}
	return f.Close, nil
}

// startedByDaemon reports whether a daemon has started this process: there is the
// pipe on which it waits.
func startedByDaemon() bool {
	var st unix.Stat_t
	if unix.Fstat(ReadyFD, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false
	}
	unix.CloseOnExec(ReadyFD)
	return true
}

// server takes over clients. The holder of the lock makes it.
type server struct {
	*Conns
	life    *Life
	control *net.UnixListener
}

// listen makes the control socket in dir. Clients come when serve is called.
func listen(dir string, l *Life) (*server, error) {
	path := ControlPath(dir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	control, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("accept clients: %w", err)
	}
	return &server{Conns: NewConns(), life: l, control: control}, nil
}

// serve takes over the clients that daemons pass, until close. web gets their
// requests; its ConnContext is set.
func (s *server) serve(web *http.Server) {
	web.ConnContext = withClient
	go func() { _ = web.Serve(s.Conns) }() // it ends when the process does
	for {
		conn, err := s.control.AcceptUnix()
		if err != nil {
			return
		}
		go s.answer(conn)
	}
}

// close ends the taking over of clients.
func (s *server) close() {
	s.Conns.Close()
	s.control.Close()
}

// Conns is a listener whose connections are passed to it.
type Conns struct {
	conns chan net.Conn
	once  sync.Once
	ended chan struct{}
}

// NewConns returns a listener without connections.
func NewConns() *Conns { return &Conns{conns: make(chan net.Conn), ended: make(chan struct{})} }

// Add passes a connection, or closes it if the listener is closed.
func (c *Conns) Add(conn net.Conn) {
	select {
	case c.conns <- conn:
	case <-c.ended:
		conn.Close()
	}
}

// Accept returns the next connection.
func (c *Conns) Accept() (net.Conn, error) {
	select {
	case conn := <-c.conns:
		return conn, nil
	case <-c.ended:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (c *Conns) Close() error {
	c.once.Do(func() { close(c.ended) })
	return nil
}

// Addr is required by net.Listener and has no meaning.
func (c *Conns) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

func (s *server) answer(conn *net.UnixConn) {
	defer conn.Close()
	answer := Answer{}
	err := s.take(conn)
	switch {
	case errors.Is(err, errEnding):
		return // the daemon starts another process
	case errors.Is(err, errStays):
		// The daemon waits until the connection is closed, and may end before.
		_ = conn.SetDeadline(time.Time{})
		_, _ = conn.Read(make([]byte, 1))
		return
	case err != nil:
		answer.Refused = err.Error()
	}
	if text, err := json.Marshal(answer); err == nil {
		_, _ = conn.Write(text)
	}
}

var (
	errEnding = errors.New("the process ends")
	// errStays: the connection stays open until the process has ended.
	errStays = errors.New("the connection stays open")
)

// takeTimeout bounds how long a daemon may take to pass a client.
const takeTimeout = 30 * time.Second

// take reads one message, and carries it out.
func (s *server) take(conn *net.UnixConn) error {
	if err := conn.SetDeadline(time.Now().Add(takeTimeout)); err != nil {
		return err
	}
	buf, oob := make([]byte, MaxMessage+1), make([]byte, fdpass.Space)
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	var m Message
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		return err
	}
	switch {
	case m.Watch:
		return errStays
	case m.Stop == StopIdle || m.Stop == StopAll:
		if !s.life.stop(m.Stop == StopAll) {
			return nil
		}
		return errStays
	}
	socket, err := fdpass.Socket(oob[:oobn])
	if err != nil {
		return err
	}
	head := make([]byte, 0, m.Length)
	for len(head) < m.Length {
		n, err := conn.Read(buf)
		if err != nil || n == 0 {
			socket.Close()
			return fmt.Errorf("the head of the request: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		head = append(head, buf[:n]...)
	}
	end, ok := s.life.Begin()
	if !ok {
		socket.Close()
		return errEnding
	}
	s.Add(&passed{Conn: socket, ahead: head, headers: m.Headers, end: end})
	return nil
}

// passed is a client's connection, with the part of its request that the daemon has
// read.
type passed struct {
	net.Conn
	headers map[string][]string // of every answer
	end     func()              // notes that the client has left

	mu    sync.Mutex
	ahead []byte
}

func (c *passed) Read(p []byte) (int, error) {
	c.mu.Lock()
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		c.mu.Unlock()
		return n, nil
	}
	c.mu.Unlock()
	return c.Conn.Read(p)
}

// CloseWrite ends the sending side.
func (c *passed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

func (c *passed) Close() error {
	err := c.Conn.Close()
	c.end()
	return err
}

type clientKey struct{}

// withClient is an http.Server's ConnContext.
func withClient(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, clientKey{}, c)
}

// SetHeaders sets the headers that every answer has. The next request on the
// connection would not reach the daemon, so the connection ends with the answer.
func SetHeaders(w http.ResponseWriter, r *http.Request) {
	if c, ok := r.Context().Value(clientKey{}).(*passed); ok {
		for name, values := range c.headers {
			w.Header()[name] = values
		}
	}
	w.Header().Set("Connection", "close")
}
