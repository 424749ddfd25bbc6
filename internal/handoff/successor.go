// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
)

// shut closes one or both directions of the connection, so that a blocked receive
// ends, here or at the other end.
func (p *peer) shut(how int) error {
	raw, err := p.conn.File().SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.Shutdown(int(fd), how) })
	return errors.Join(err, serr)
}

// Successor is a process that wants to become the daemon, from the daemon's side.
// Call its methods in the order in which they are defined, from one goroutine.
// After an error call Fence, which makes sure that the process does nothing any
// more.
type Successor struct {
	Release            string
	DataRoot, ExecRoot string

	peer    *peer
	control *Control
}

// Pid returns its process ID.
func (s *Successor) Pid() int { return s.peer.pid }

// Welcome sends it copies of all descriptors. From now on no waiting connection
// is lost if the daemon dies.
func (s *Successor) Welcome(release string, sockets []Socket, lock *Lock) error {
	m := message{Type: sayWelcome, Release: release, Pid: os.Getpid(), Locks: len(lock.files)}
	var files []*os.File
	for _, l := range sockets {
		m.Listeners = append(m.Listeners, l.Address)
		files = append(files, l.File)
	}
	files = append(files, lock.files...)
	own, err := s.control.File()
	if err != nil {
		return fmt.Errorf("hand over the handoff socket: %w", err)
	}
	defer own.Close()
	return s.peer.send(m, append(files, own)...)
}

// Prepared waits until the successor has prepared what it can while the daemon
// still runs.
func (s *Successor) Prepared(within time.Duration) error { return s.expect(sayTake, within) }

// Waiting reports what the handover is waiting for.
func (s *Successor) Waiting(what []string) error {
	return s.peer.send(message{Type: sayWaiting, Waiting: what})
}

// Yours hands over everything. The daemon must have closed what only one process
// may use.
func (s *Successor) Yours(clients []Client) error {
	m := message{Type: sayYours, Clients: clients}
	var files []*os.File
	for _, c := range clients {
		files = append(files, c.File)
	}
	return s.peer.send(m, files...)
}

// Ready waits until the successor has restored everything.
func (s *Successor) Ready(within time.Duration) error { return s.expect(sayReady, within) }

// Go lets the successor serve, and waits until it does.
func (s *Successor) Go(within time.Duration) error {
	if err := s.peer.send(message{Type: sayGo}); err != nil {
		return err
	}
	return s.expect(sayServing, within)
}

// Released reports to the successor that it is the daemon now.
func (s *Successor) Released() error { return s.peer.send(message{Type: sayReleased}) }

func (s *Successor) expect(want string, within time.Duration) error {
	m, files, err := s.peer.receive(time.Now().Add(within))
	closeAll(files)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errs.Unavailable("the new daemon, process %d, was not %s within %s", s.peer.pid, want, within)
	case errors.Is(err, io.EOF):
		return errdefs.ErrAborted.WithMessage(fmt.Sprintf("the new daemon, process %d, ended before it was %s: its log says why", s.peer.pid, want))
	case err != nil:
		return fmt.Errorf("the new daemon, process %d: %w", s.peer.pid, err)
	case m.Type != want:
		return errdefs.ErrInternal.WithMessage(fmt.Sprintf("the new daemon, process %d, sent %q where %q was expected", s.peer.pid, m.Type, want))
	}
	return nil
}

// Refuse sends the reason why the successor is refused, and closes the
// connection.
func (s *Successor) Refuse(why error) {
	_ = s.peer.send(message{Type: sayRefused, Error: why.Error()})
	s.Close()
}

// fenceGrace is how long a refused successor may take to end by itself.
const fenceGrace = 2 * time.Second

// fenceMost is how long a killed process may take to end. Only an uninterruptible
// wait, mostly for a disk, can delay its end.
const fenceMost = 15 * time.Second

// Fence returns when the process has ended. It first sends it the reason, and
// kills it if it does not end in time. Until then the process may hold or change
// what belongs to the daemon. So after an error nothing can be taken back.
func (s *Successor) Fence(why error) error {
	_ = s.peer.send(message{Type: sayRefused, Error: why.Error()})
	if !s.peer.gone(fenceGrace) {
		raw, err := s.peer.pidfd.SyscallConn()
		if err == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
		}
		if !s.peer.gone(fenceMost) {
			return errs.Unavailable("the new daemon, process %d, can't be killed", s.peer.pid)
		}
	}
	s.Close()
	return nil
}

// Signal sends the process a signal.
func (s *Successor) Signal(sig unix.Signal) error {
	raw, err := s.peer.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return errors.Join(err, serr)
}

// Close closes the connection. Another successor may connect then.
func (s *Successor) Close() {
	s.peer.close()
	s.control.mu.Lock()
	s.control.busy = false
	s.control.mu.Unlock()
}

// Predecessor is the running daemon, from the side of the process that wants to
// take over.
type Predecessor struct {
	Release string
	Sockets []Socket // the listeners
	Locks   []*os.File
	Control *os.File // the handoff socket

	peer *peer
}

// ErrDied means that the predecessor died before the handover was complete. What
// it sent before belongs to the successor.
var ErrDied = errdefs.ErrAborted.WithMessage("the old daemon died while it handed over")

// Meet announces this process to the daemon of the exec root. If there is none it
// returns errdefs.ErrNotFound; if the daemon refuses,
// errdefs.ErrFailedPrecondition.
func Meet(ctx context.Context, dataRoot, execRoot, release string) (*Predecessor, error) {
	conn, err := dialControl(ctx, execRoot)
	if err != nil {
		return nil, err
	}
	p, err := newPeer(conn)
	if err != nil {
		return nil, err
	}
	err = p.send(message{Type: sayHello, Role: roleTakeover, Release: release, Pid: os.Getpid(), DataRoot: dataRoot, ExecRoot: execRoot})
	if err != nil {
		p.close()
		return nil, err
	}
	m, files, err := p.receive(time.Now().Add(time.Minute))
	if err == nil && (m.Type != sayWelcome || len(files) != len(m.Listeners)+m.Locks+1) {
		closeAll(files)
		err = errdefs.ErrInternal.WithMessage("its answer is not a valid welcome message")
	}
	if err == nil {
		if err = p.identify(m.Pid); err != nil {
			closeAll(files)
		}
	}
	if err != nil {
		p.close()
		if errors.Is(err, io.EOF) {
			// The lock shows whether the daemon still lives.
			return nil, errdefs.ErrNotFound.WithMessage("the daemon closed the connection before it answered")
		}
		return nil, fmt.Errorf("take over from the daemon: %w", err)
	}
	pre := &Predecessor{Release: m.Release, peer: p}
	for i, address := range m.Listeners {
		pre.Sockets = append(pre.Sockets, Socket{address, files[i]})
	}
	n := len(m.Listeners)
	pre.Locks, pre.Control = files[n:n+m.Locks], files[n+m.Locks]
	return pre, nil
}

// Pid returns its process ID.
func (p *Predecessor) Pid() int { return p.peer.pid }

// Take asks for everything and waits; the daemon's own limits bound the wait. It
// calls waiting with what the daemon is waiting for. After ErrDied everything
// belongs to this process all the same.
func (p *Predecessor) Take(waiting func([]string)) ([]Client, error) {
	if err := p.peer.send(message{Type: sayTake}); err != nil {
		return nil, p.died(err)
	}
	for {
		m, files, err := p.peer.receive(time.Time{})
		if err != nil {
			return nil, p.died(err)
		}
		switch {
		case m.Type == sayWaiting:
			closeAll(files)
			waiting(m.Waiting)
		case m.Type == sayYours && len(files) == len(m.Clients):
			for i := range m.Clients {
				m.Clients[i].File = files[i]
			}
			return m.Clients, nil
		default:
			closeAll(files)
			return nil, errdefs.ErrInternal.WithMessage(fmt.Sprintf("the old daemon sent %q with %d descriptors", m.Type, len(files)))
		}
	}
}

// died returns ErrDied if the daemon has died, and otherwise err. The end of the
// connection alone does not prove it.
func (p *Predecessor) died(err error) error {
	if errdefs.IsFailedPrecondition(err) {
		return err
	}
	if p.peer.gone(deathGrace) {
		return ErrDied
	}
	return fmt.Errorf("the old daemon, process %d, ended the handover and goes on: %w", p.peer.pid, err)
}

// deathGrace is how long a process may take to end after its descriptors were
// closed.
const deathGrace = 10 * time.Second

// Ready reports that everything is restored, and waits for permission to serve.
// ErrDied counts as permission.
func (p *Predecessor) Ready() error {
	if err := p.peer.send(message{Type: sayReady}); err != nil {
		return p.died(err)
	}
	m, files, err := p.peer.receive(time.Time{})
	closeAll(files)
	if err != nil {
		return p.died(err)
	}
	if m.Type != sayGo {
		return errdefs.ErrInternal.WithMessage(fmt.Sprintf("the old daemon sent %q", m.Type))
	}
	return nil
}

// Serving reports that this process serves, and waits until the old daemon has
// released everything, at most a few seconds.
func (p *Predecessor) Serving() {
	if p.peer.send(message{Type: sayServing}) == nil {
		_, files, _ := p.peer.receive(time.Now().Add(5 * time.Second))
		closeAll(files)
	}
	p.peer.close()
}

// Failed reports to the daemon that this process gives up, and why. The process
// must exit afterwards.
func (p *Predecessor) Failed(why error) {
	_ = p.peer.send(message{Type: sayRefused, Error: why.Error()})
}
