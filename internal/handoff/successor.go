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
)

// shut ends one or both directions, so that a receive that waits ends: here, or
// at the other end.
func (p *peer) shut(how int) error {
	raw, err := p.conn.File().SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.Shutdown(int(fd), how) })
	return errors.Join(err, serr)
}

// Successor is a process that wants to become the daemon, as the daemon sees
// it. Its methods are called in the order in which they stand here, from one
// goroutine; after an error Fence makes sure that the process does nothing any
// more.
type Successor struct {
	Release            string
	DataRoot, ExecRoot string

	peer    *peer
	control *Control
}

// Pid is its process ID.
func (s *Successor) Pid() int { return s.peer.pid }

// Welcome gives it copies of everything that lives in descriptors, so that from
// now on no death of the daemon loses a connection that waits.
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

// Prepared waits until it has prepared what it can beside the living daemon.
func (s *Successor) Prepared(within time.Duration) error { return s.expect(sayTake, within) }

// Waiting tells it what the handover waits for.
func (s *Successor) Waiting(what []string) error {
	return s.peer.send(message{Type: sayWaiting, Waiting: what})
}

// Yours gives it everything. The daemon must have closed what is exclusive.
func (s *Successor) Yours(clients []Client) error {
	m := message{Type: sayYours, Clients: clients}
	var files []*os.File
	for _, c := range clients {
		files = append(files, c.File)
	}
	return s.peer.send(m, files...)
}

// Ready waits until it has restored everything.
func (s *Successor) Ready(within time.Duration) error { return s.expect(sayReady, within) }

// Go lets it serve, and waits until it does.
func (s *Successor) Go(within time.Duration) error {
	if err := s.peer.send(message{Type: sayGo}); err != nil {
		return err
	}
	return s.expect(sayServing, within)
}

// Released says that it is the daemon now.
func (s *Successor) Released() error { return s.peer.send(message{Type: sayReleased}) }

func (s *Successor) expect(want string, within time.Duration) error {
	m, files, err := s.peer.receive(time.Now().Add(within))
	closeAll(files)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("the new daemon, process %d, was not %s within %s", s.peer.pid, want, within))
	case errors.Is(err, io.EOF):
		return errdefs.ErrAborted.WithMessage(fmt.Sprintf("the new daemon, process %d, ended before it was %s: its log says why", s.peer.pid, want))
	case err != nil:
		return fmt.Errorf("the new daemon, process %d: %w", s.peer.pid, err)
	case m.Type != want:
		return errdefs.ErrInternal.WithMessage(fmt.Sprintf("the new daemon, process %d, said %q where %q was expected", s.peer.pid, m.Type, want))
	}
	return nil
}

// Refuse tells it why it is not taken, and ends the connection.
func (s *Successor) Refuse(why error) {
	_ = s.peer.send(message{Type: sayRefused, Error: why.Error()})
	s.Close()
}

// fenceGrace is how long a refused successor may take to end by itself.
const fenceGrace = 2 * time.Second

// Fence returns when the process has ended: it is told why, and killed if that
// is of no use. Until then it may hold or change what is the daemon's.
func (s *Successor) Fence(why error) {
	_ = s.peer.send(message{Type: sayRefused, Error: why.Error()})
	if !s.peer.gone(fenceGrace) {
		raw, err := s.peer.pidfd.SyscallConn()
		if err == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
		}
		s.peer.gone(time.Hour) // nothing but uninterruptible disk waits keeps it from dying
	}
	s.Close()
}

// Signal sends it a signal.
func (s *Successor) Signal(sig unix.Signal) error {
	raw, err := s.peer.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return errors.Join(err, serr)
}

// Close ends the connection; another successor may come.
func (s *Successor) Close() {
	s.peer.close()
	s.control.mu.Lock()
	s.control.busy = false
	s.control.mu.Unlock()
}

// Predecessor is the daemon that is there, as the process sees it that wants to
// take over.
type Predecessor struct {
	Release string
	Sockets []Socket // the listeners
	Locks   []*os.File
	Control *os.File // the handoff socket

	peer *peer
}

// ErrDied says that the predecessor died before it had handed over. What it
// sent before is the successor's.
var ErrDied = errdefs.ErrAborted.WithMessage("the old daemon died while it handed over")

// Meet announces this process to the daemon of the exec root. Without one it is
// errdefs.ErrNotFound; a refusal is errdefs.ErrFailedPrecondition.
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
		err = errdefs.ErrInternal.WithMessage("its answer makes no sense")
	}
	if err == nil {
		if err = p.identify(m.Pid); err != nil {
			closeAll(files)
		}
	}
	if err != nil {
		p.close()
		if errors.Is(err, io.EOF) {
			// Whether it lives is for the lock to say.
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

// Pid is its process ID.
func (p *Predecessor) Pid() int { return p.peer.pid }

// Take asks for everything and waits, bounded by the daemon's own limits.
// waiting is called with what the daemon waits for. ErrDied means that it is
// this process's all the same.
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
			return nil, errdefs.ErrInternal.WithMessage(fmt.Sprintf("the old daemon said %q with %d descriptors", m.Type, len(files)))
		}
	}
}

// died tells the death of the daemon from other errors: an ended connection is
// only the sign to look.
func (p *Predecessor) died(err error) error {
	if errdefs.IsFailedPrecondition(err) {
		return err
	}
	if p.peer.gone(deathGrace) {
		return ErrDied
	}
	return fmt.Errorf("the old daemon, process %d, ended the handover and goes on: %w", p.peer.pid, err)
}

// deathGrace is how long a process may take to be gone after its descriptors
// were closed.
const deathGrace = 10 * time.Second

// Ready says that everything is restored, and waits for the leave to serve.
// ErrDied is such a leave.
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
		return errdefs.ErrInternal.WithMessage(fmt.Sprintf("the old daemon said %q", m.Type))
	}
	return nil
}

// Serving says that this process serves, and waits until the old one has let
// go, at most a few seconds.
func (p *Predecessor) Serving() {
	if p.peer.send(message{Type: sayServing}) == nil {
		_, files, _ := p.peer.receive(time.Now().Add(5 * time.Second))
		closeAll(files)
	}
	p.peer.close()
}

// Failed tells the daemon that this process gives up, and why. The process must
// end after it.
func (p *Predecessor) Failed(why error) {
	_ = p.peer.send(message{Type: sayRefused, Error: why.Error()})
}
