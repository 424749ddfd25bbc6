// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

// waiters are the clients of the wait API that this shim answers.
type waiters struct {
	mu    sync.Mutex
	all   map[*waiter]struct{}
	ended bool
}

// waiter is one such client. Once a daemon has handed it over only the shim writes
// to the socket, so that the client gets exactly one answer: the one that the
// daemon sends over the lease while it lives, otherwise one made from the shim's
// own state.
type waiter struct {
	client *stream.Session
	lease  *os.File
	// needsDaemon: the condition (removal) is not met by the container's end, so
	// only a daemon can answer.
	needsDaemon bool
	done        chan struct{} // closed when the shim no longer serves this client

	condition    string
	lastFinished time.Time // when the previous run ended

	// What was read from the lease, changed within steps (see quiesce.go).
	leaseData []byte
	leaseRead bool
}

// acceptWaiter handles Hold: it takes over a client. When it returns, the client's
// answer no longer depends on the daemon.
func (s *Shim) acceptWaiter(p proto.Hold, sock *stream.Socket, leaseFD int) error {
	// This must precede os.NewFile, which registers only non-blocking descriptors
	// with the poller.
	nonblock := unix.SetNonblock(leaseFD, true)
	lease := os.NewFile(uintptr(leaseFD), "lease")
	refuse := func(err error) error {
		sock.Release()
		lease.Close()
		return err
	}
	switch p.Condition {
	case proto.HoldNotRunning, proto.HoldNextExit, proto.HoldRemoved:
	default:
		return refuse(invalid("%s: unknown condition %q", proto.MethodHold, p.Condition))
	}
	if descriptor.SocketType(leaseFD) != unix.SOCK_STREAM || descriptor.Listens(leaseFD) {
		return refuse(invalid("%s: the lease is not a connected stream socket", proto.MethodHold))
	}
	if err := s.server.checkClientLimit(); err != nil {
		return refuse(err) // the daemon continues to serve the client
	}
	if nonblock != nil {
		return refuse(os.NewSyscallError("setnonblock", nonblock))
	}
	w := &waiter{client: stream.New(sock, stream.Options{}, nil), lease: lease, done: make(chan struct{}), needsDaemon: p.Condition == proto.HoldRemoved && !s.boot.AutoRemove,
		condition: p.Condition, lastFinished: s.rec.snapshot().Finished}
	s.waiters.mu.Lock()
	if s.waiters.ended {
		s.waiters.mu.Unlock()
		return refuse(conflict("container has ended"))
	}
	if s.waiters.all == nil {
		s.waiters.all = map[*waiter]struct{}{}
	}
	s.waiters.all[w] = struct{}{}
	s.waiters.mu.Unlock()
	w.client.Write(p.Head)
	w.client.Begin()
	if !w.client.Flush() {
		s.waiters.remove(w)
		return refuse(errors.New("client has gone"))
	}
	s.serveWaiter(w)
	return nil
}

// serveWaiter serves the client in a new goroutine.
func (s *Shim) serveWaiter(w *waiter) {
	s.server.trackClient(w.done)
	go func() {
		defer close(w.done)
		defer s.waiters.remove(w)
		defer w.lease.Close()
		if s.answerWaiter(w) {
			<-w.client.Done()
		} else {
			w.client.Release()
		}
	}()
}

func (ws *waiters) remove(w *waiter) {
	ws.mu.Lock()
	delete(ws.all, w)
	ws.mu.Unlock()
}

// containerEnded is called when the container has ended for good and its state is
// final. It cancels the reads of the leases of clients that need a daemon.
func (ws *waiters) containerEnded() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.ended = true
	for w := range ws.all {
		if w.needsDaemon {
			w.lease.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

// answerWaiter serves one client. It reports false, without having read or written
// anything, if the daemon lives and answers.
func (s *Shim) answerWaiter(w *waiter) (answered bool) {
	var err error
	if !w.leaseRead {
		err = stream.ReadStep(w.lease, make([]byte, 4096), func(p []byte, _ bool) {
			w.leaseData, w.leaseRead = append(w.leaseData, p...), true
		})
	}
	if len(w.leaseData) > 0 {
		// The daemon that sent this has handled the events. Another daemon may be
		// connected that has not yet.
		s.server.awaitAcks(s.rec.snapshot().Seq)
		s.gate.enter()
		defer s.gate.leave()
	}
	switch {
	case len(w.leaseData) > 0 && w.leaseData[0] == proto.LeaseDrop:
		return false
	case len(w.leaseData) > 0:
		go w.client.Join(nil, nil)
		w.client.End(w.leaseData)
		w.client.Flush() // from the gate on nothing of it is handed over
		w.lease.Write([]byte{1})
		s.waiters.remove(w) // answered, so a re-exec must not hand it over
		return true
	case os.IsTimeout(err):
		return false // containerEnded cancelled the read
	}
	// The lease ended without data: the daemon that knew this client has died.
	go w.client.Join(nil, nil)
	gone := w.client.Left()
	st, came := s.rec.waitFor(gone, func(st *proto.State) bool {
		return ended(st) || w.condition != proto.HoldRemoved && !st.Finished.Equal(w.lastFinished)
	})
	if came && ended(&st) {
		// Clients inspect the container after the answer, so it is sent only when the
		// final state is recorded.
		select {
		case <-s.server.sealed:
			st = s.rec.snapshot()
		case <-gone:
			came = false
		}
	}
	if came && w.condition == proto.HoldRemoved && !w.needsDaemon && st.Status != proto.StatusRemoved {
		// A new daemon has been started by now, and removes the container.
		awaitRemoval(s.boot.DataDir, gone)
	}
	if came {
		s.server.awaitAcks(st.Seq)
	}
	var answer []byte
	if came && (st.Status == proto.StatusRemoved || !w.needsDaemon) {
		body := `{"StatusCode":` + strconv.Itoa(st.ExitCode) + "}\n"
		answer = []byte(strconv.FormatInt(int64(len(body)), 16) + "\r\n" + body + "\r\n0\r\n\r\n")
	}
	s.gate.enter()
	defer s.gate.leave()
	w.client.End(answer)
	w.client.Flush()
	s.waiters.remove(w)
	return true
}

// removalTime bounds how long a daemon may take to remove a container.
const removalTime = 10 * time.Second

// awaitRemoval waits until the directory has been removed, the client has gone, or
// removalTime has passed.
func awaitRemoval(dir string, gone <-chan struct{}) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR); err != nil {
		return // already removed
	}
	f.SetReadDeadline(time.Now().Add(removalTime))
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-gone:
			f.SetReadDeadline(time.Unix(1, 0))
		case <-done:
		}
	}()
	f.Read(make([]byte, 4096))
}
