// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
)

// Control is the daemon's handoff socket. A successor connects to it to announce
// itself. Predecessors that still serve a stream stay connected to it.
type Control struct {
	// Successors delivers processes that want to become the daemon, one at a time.
	// The receiver must finally call Refuse or Close.
	Successors chan *Successor
	// Forwarded accepts the connections on which predecessors forward requests.
	Forwarded net.Listener

	l      *net.UnixListener
	socket *socketFile
	log    *slog.Logger

	mu        sync.Mutex
	closed    bool
	last      bool // this daemon ends without a successor
	busy      bool // a successor is connected
	followers map[*peer]bool
	left      chan struct{} // closed and replaced whenever a follower leaves
	forwarded chan net.Conn
	done      chan struct{}
}

// followerGrace bounds how long a predecessor may outlive the daemon.
const followerGrace = 5 * time.Second

// helloLimit bounds how long a connection may take to send hello.
const helloLimit = 10 * time.Second

// ListenControl creates the handoff socket in the exec root, or takes over the
// predecessor's. The Lock must be held. Connections are only accepted once Serve
// runs.
func ListenControl(ctx context.Context, execRoot string, inherited *os.File, log *slog.Logger) (*Control, error) {
	path := controlPath(execRoot)
	c := &Control{
		Successors: make(chan *Successor), log: log,
		followers: map[*peer]bool{}, left: make(chan struct{}),
		forwarded: make(chan net.Conn), done: make(chan struct{}),
	}
	c.Forwarded = &forwarded{c: c, closed: make(chan struct{})}
	if inherited != nil {
		l, err := net.FileListener(inherited)
		inherited.Close()
		if err != nil {
			return nil, fmt.Errorf("listen on the handed over %s: %w", path, err)
		}
		u, ok := l.(*net.UnixListener)
		if !ok {
			l.Close()
			return nil, errdefs.ErrInvalidArgument.WithMessage("the descriptor that was handed over as the handoff socket is not a Unix socket")
		}
		u.SetUnlinkOnClose(false)
		if c.socket, err = statSocket(path); err == nil {
			c.l = u
			return c, nil
		}
		u.Close() // the socket's file is gone, so no process could connect
	}
	if len(path) > maxSocketPath {
		return nil, errs.Invalid("the path of the exec root is too long for %s: no other daemon can take over", path)
	}
	// Create it next to the path with the right mode, then rename it.
	fresh := path + "~"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	c.l = l.(*net.UnixListener)
	c.l.SetUnlinkOnClose(false)
	if err = os.Chmod(fresh, 0o600); err == nil {
		err = os.Rename(fresh, path)
	}
	if err == nil {
		c.socket, err = statSocket(path)
	}
	if err != nil {
		c.l.Close()
		os.Remove(fresh)
		return nil, err
	}
	return c, nil
}

// File returns a copy of the socket, for a successor.
func (c *Control) File() (*os.File, error) { return c.l.File() }

// Serve accepts until Close or Leave.
func (c *Control) Serve() {
	for {
		conn, err := c.l.AcceptUnix()
		if err != nil {
			return
		}
		go c.meet(conn)
	}
}

// meet reads hello from a connection and handles it according to its role.
func (c *Control) meet(conn *net.UnixConn) {
	p, err := newPeer(conn)
	if err != nil {
		c.log.Warn(err.Error())
		return
	}
	if err := p.identify(p.pid); err != nil {
		c.log.Warn(err.Error())
		p.close()
		return
	}
	hello, files, err := p.receive(time.Now().Add(helloLimit))
	closeAll(files)
	if err != nil || hello.Type != sayHello {
		p.conn.DropFDs()
		p.close()
		return
	}
	switch hello.Role {
	case roleTakeover:
		c.announce(&Successor{peer: p, Release: hello.Release, DataRoot: hello.DataRoot, ExecRoot: hello.ExecRoot, control: c})
	case roleFollow:
		if p.send(message{Type: sayWelcome, Pid: os.Getpid()}) != nil {
			p.close()
			return
		}
		c.follow(p)
	case roleForward:
		p.conn.DropFDs()
		c.forward(p)
	default:
		p.conn.DropFDs()
		_ = p.send(message{Type: sayRefused, Error: fmt.Sprintf("the daemon with process ID %d does not know the role %q: it is of another release", os.Getpid(), hello.Role)})
		p.close()
	}
}

func (c *Control) announce(s *Successor) {
	c.mu.Lock()
	busy := c.busy || c.closed
	c.busy = true
	c.mu.Unlock()
	if busy {
		_ = s.peer.send(message{Type: sayRefused, Error: "another daemon is just taking over"})
		s.peer.close()
		return
	}
	select {
	case c.Successors <- s:
	case <-c.done:
		s.Close()
	case <-time.After(helloLimit):
		s.Refuse(errors.New("the daemon is busy starting or stopping: try again"))
	}
}

func (c *Control) follow(p *peer) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		p.close()
		return
	}
	c.followers[p] = true
	c.mu.Unlock()
	for {
		_, files, err := p.receive(time.Time{})
		closeAll(files)
		if err != nil {
			break
		}
	}
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	if last {
		p.gone(followerGrace)
	}
	c.mu.Lock()
	delete(c.followers, p)
	close(c.left)
	c.left = make(chan struct{})
	c.mu.Unlock()
	p.close()
}

// forward passes the connection to the HTTP server.
func (c *Control) forward(p *peer) {
	defer p.close()
	if p.send(message{Type: sayWelcome, Pid: os.Getpid()}) != nil {
		return
	}
	_ = p.conn.File().SetDeadline(time.Time{})
	fd, err := dup(p.conn.File())
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "forwarded")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return
	}
	select {
	case c.forwarded <- conn:
	case <-c.done:
		conn.Close()
	}
}

// forwarded is a listener that returns connections from the handoff socket. It
// ends with the Control, or when its server closes it: a server that shuts down
// waits until Accept has returned.
type forwarded struct {
	c      *Control
	once   sync.Once
	closed chan struct{}
}

func (f *forwarded) Accept() (net.Conn, error) {
	select {
	case conn := <-f.c.forwarded:
		return conn, nil
	case <-f.c.done:
		return nil, net.ErrClosed
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

func (f *forwarded) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

func (f *forwarded) Addr() net.Addr { return f.c.l.Addr() }

// Leave stops listening because a successor listens on the same socket.
// Predecessors find the successor there.
func (c *Control) Leave() { c.end() }

// Close stops listening for good and removes the socket's file. It waits, at most
// for wait, until the connected predecessors have ended.
func (c *Control) Close(wait time.Duration) {
	c.mu.Lock()
	c.last = true
	c.mu.Unlock()
	c.socket.remove()
	c.end()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		c.mu.Lock()
		n, left := len(c.followers), c.left
		c.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-left:
		case <-timer.C:
			return
		}
	}
}

func (c *Control) end() {
	c.l.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	close(c.done)
	for p := range c.followers {
		// The follower then closes its end, which removes it from the list.
		_ = p.shut(unix.SHUT_WR)
	}
}

// Follow stays connected to the daemon that listens in the exec root. It
// reconnects to each successor, and returns when there is no daemon any more or
// the context ends.
func Follow(ctx context.Context, execRoot string) {
	for ctx.Err() == nil {
		p, _, err := dialRole(ctx, execRoot, message{Role: roleFollow})
		if err != nil {
			return
		}
		stop := context.AfterFunc(ctx, func() { _ = p.shut(unix.SHUT_RDWR) })
		for err == nil {
			var files []*os.File
			_, files, err = p.receive(time.Time{})
			closeAll(files)
		}
		stop()
		p.close()
	}
}

// DialForward connects to the daemon's API through the exec root.
func DialForward(ctx context.Context, execRoot string) (net.Conn, error) {
	p, _, err := dialRole(ctx, execRoot, message{Role: roleForward})
	if err != nil {
		return nil, err
	}
	defer p.close()
	fd, err := dup(p.conn.File())
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "forward")
	defer f.Close()
	return net.FileConn(f)
}

// dialRole connects, sends hello and waits for welcome.
func dialRole(ctx context.Context, execRoot string, hello message) (*peer, message, error) {
	conn, err := dialControl(ctx, execRoot)
	if err != nil {
		return nil, message{}, err
	}
	p, err := newPeer(conn)
	if err != nil {
		return nil, message{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.shut(unix.SHUT_RDWR) })
	defer stop()
	hello.Type, hello.Pid, hello.ExecRoot = sayHello, os.Getpid(), execRoot
	if err := p.send(hello); err != nil {
		p.close()
		return nil, message{}, err
	}
	// The daemon may be handing over; then its successor answers.
	m, files, err := p.receive(time.Now().Add(time.Minute))
	closeAll(files)
	if err == nil && m.Type != sayWelcome {
		err = errdefs.ErrInternal.WithMessage("handoff: the daemon answered " + m.Type)
	}
	if err != nil {
		p.close()
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("the daemon has closed the connection: %w", err)
		}
		return nil, m, err
	}
	return p, m, nil
}

// dialControl connects to the handoff socket. If no process listens there the
// error is errdefs.ErrNotFound.
func dialControl(ctx context.Context, execRoot string) (*net.UnixConn, error) {
	path := controlPath(execRoot)
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, errdefs.ErrNotFound.WithMessage("no daemon listens on " + path)
		}
		return nil, fmt.Errorf("reach the daemon to take over from: %w", err)
	}
	return conn.(*net.UnixConn), nil
}

func controlPath(execRoot string) string { return filepath.Join(execRoot, ControlSocket) }
