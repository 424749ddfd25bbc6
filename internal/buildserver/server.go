// SPDX-License-Identifier: Apache-2.0

// Package buildserver is the process that builds images. It embeds BuildKit, and no
// other package imports it, so that a daemon that never builds does not pay for it.
// See package build, the daemon's side, for how the two work together.
//
// The process owns the directory build in the data root: the databases of
// BuildKit's cache and history. Layers, blobs and names are in the daemon's stores,
// which it uses through package stores. What a RUN step needs on this host is named
// after the step, so that the next process finds what this one leaves if it is
// killed.
package buildserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/moby/buildkit/util/bklog"
	"golang.org/x/sys/unix"

	"holdfast/internal/build"
	"holdfast/internal/build/stores"
	"holdfast/internal/fdpass"
)

// Options are what Run needs.
type Options struct {
	DataRoot, ExecRoot string
	// Ready gets a "+" when clients can be passed, or the reason why not, and is
	// then closed.
	Ready io.WriteCloser
	// Idle is how long the process stays without anything to do.
	Idle time.Duration
}

// DefaultIdle is the default of Options.Idle.
const DefaultIdle = time.Minute

// server is the process.
type server struct {
	o       Options
	control *net.UnixListener
	clients *passed
	builder *builder
	running running

	mu      sync.Mutex
	working int // clients and requests
	// collected: the cache was collected since there was something to do.
	collected bool
	rest      *time.Timer
	done      chan struct{} // closed when the process shall end
	ended     chan struct{} // never closed: the process ends
	ending    bool
}

// errHeld: another build process works for the same daemon.
var errHeld = errors.New("another build process runs already")

// Run serves builds until there has been none for a while, or until SIGTERM.
func Run(o Options) error {
	s, unlock, err := open(o)
	if err != nil {
		_, _ = io.WriteString(o.Ready, err.Error())
		o.Ready.Close()
		return err
	}
	defer unlock()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	go func() {
		<-stop
		s.end()
	}()
	web := &http.Server{Handler: s, ConnContext: withClient}
	go func() { _ = web.Serve(s.clients) }() // it ends when the process does
	s.mu.Lock()
	s.rest = time.AfterFunc(o.Idle, s.quit)
	s.mu.Unlock()
	go s.accept()
	_, _ = io.WriteString(o.Ready, "+")
	o.Ready.Close()
	<-s.done
	s.control.Close()
	web.Close()
	return s.builder.close()
}

// open takes the lock, removes what a killed process left, and opens everything.
func open(o Options) (_ *server, unlock func(), err error) {
	lock, err := os.OpenFile(build.LockPath(o.ExecRoot), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	unlock = func() { lock.Close() }
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil, errHeld
	}
	if err != nil {
		return nil, nil, os.NewSyscallError("flock", err)
	}
	s := &server{o: o, clients: newPassed(), done: make(chan struct{}), ended: make(chan struct{})}
	remote := stores.NewClient(build.StoresPath(o.ExecRoot), namespace)
	if s.builder, err = openBuilder(context.Background(), o, remote); err != nil {
		return nil, nil, err
	}
	path := build.ControlPath(o.ExecRoot)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	if s.control, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"}); err != nil {
		return nil, nil, fmt.Errorf("accept clients: %w", err)
	}
	return s, unlock, nil
}

// begin notes that there is something to do, until end is called. It returns false
// if the process is about to end.
func (s *server) begin() (end func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, false
	}
	s.working++
	s.collected = false
	s.rest.Stop()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.working--; s.working == 0 {
			s.rest.Reset(s.o.Idle)
		}
	}), true
}

// quit ends the process unless there is something to do. Before that it collects the
// cache, because BuildKit does so only some time after a build.
func (s *server) quit() {
	s.mu.Lock()
	idle, collect := s.working == 0, !s.collected
	s.collected = s.collected || idle
	s.ending = s.ending || idle && !collect
	s.mu.Unlock()
	switch {
	case !idle: // end starts the timer again
	case collect:
		s.builder.collectCache(context.Background())
		s.quit()
	default:
		s.end()
	}
}

// stopIdle ends the process if there is nothing to do. The daemon is about to end, so
// the cache can't be collected.
func (s *server) stopIdle() bool {
	s.mu.Lock()
	s.collected = s.collected || s.working == 0
	s.mu.Unlock()
	s.quit()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

// end ends the process.
func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	select {
	case <-s.done:
	default:
		close(s.done)
	}
}

// accept takes over the clients that daemons pass.
func (s *server) accept() {
	for {
		conn, err := s.control.AcceptUnix()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			answer := build.Answer{}
			err := s.take(conn)
			switch {
			case errors.Is(err, errEnding):
				return // the daemon starts another process
			case errors.Is(err, errStays):
				<-s.ended // the daemon waits until the connection is closed
				return
			case err != nil:
				answer.Refused = err.Error()
			}
			text, err := json.Marshal(answer)
			if err == nil {
				_, _ = conn.Write(text)
			}
		}()
	}
}

var (
	errEnding = errors.New("the process ends")
	// errStays: the connection stays open until the process has ended.
	errStays = errors.New("the process ends with what it does")
)

// take reads one message, and carries it out.
func (s *server) take(conn *net.UnixConn) error {
	if err := conn.SetDeadline(time.Now().Add(takeTimeout)); err != nil {
		return err
	}
	buf, oob := make([]byte, build.MaxMessage+1), make([]byte, fdpass.Space)
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	var m build.Client
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		return err
	}
	switch m.Stop {
	case build.StopIdle:
		if !s.stopIdle() {
			return nil
		}
		return errStays
	case build.StopAll:
		s.end()
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
	end, ok := s.begin()
	if !ok {
		socket.Close()
		return errEnding
	}
	s.clients.add(&peer{Conn: socket, ahead: head, headers: m.Headers, end: end})
	return nil
}

// takeTimeout bounds how long a daemon may take to pass a client.
const takeTimeout = 30 * time.Second

// log writes what nobody is told otherwise.
func logf(format string, args ...any) { bklog.L.Warnf(format, args...) }
