package server

import (
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// holds are the clients who wait for the container's end.
type holds struct {
	mu    sync.Mutex
	all   map[*hold]struct{}
	ended bool
}

// hold is one of them. Only the shim writes to it once it is here, so that it
// is answered once: with what comes over the lease as long as a daemon lives,
// else with what the shim knows.
type hold struct {
	sock  *socket
	lease *os.File
	// later: the condition does not come with the container's end, and then
	// only a daemon can answer.
	later bool
	done  chan struct{} // closed when the shim has no part in it any more

	condition string
	last      time.Time // when the run before it came ended

	// What came over the lease, taken within a step (see still.go).
	said  []byte
	heard bool
}

// hold takes over a client. It returns once the client's answer no longer
// depends on the daemon.
func (s *Shim) hold(p proto.Hold, sock *socket, leaseFD int) error {
	// Before it becomes a file: one that was made while blocking has no poller.
	nonblock := unix.SetNonblock(leaseFD, true)
	lease := os.NewFile(uintptr(leaseFD), "lease")
	refuse := func(err error) error {
		sock.release()
		lease.Close()
		return err
	}
	switch p.Condition {
	case proto.HoldNotRunning, proto.HoldNextExit, proto.HoldRemoved:
	default:
		return refuse(invalid("%s: unknown condition %q", proto.MethodHold, p.Condition))
	}
	if nonblock != nil {
		return refuse(os.NewSyscallError("setnonblock", nonblock))
	}
	h := &hold{sock: sock, lease: lease, done: make(chan struct{}), later: p.Condition == proto.HoldRemoved && !s.boot.AutoRemove,
		condition: p.Condition, last: s.rec.snapshot().Finished}
	s.holds.mu.Lock()
	if s.holds.ended {
		s.holds.mu.Unlock()
		return refuse(conflict("container has ended"))
	}
	if s.holds.all == nil {
		s.holds.all = map[*hold]struct{}{}
	}
	s.holds.all[h] = struct{}{}
	s.holds.mu.Unlock()
	if len(p.Head) > 0 {
		if err := sock.say(p.Head); err != nil {
			s.holds.drop(h)
			return refuse(err)
		}
	}
	s.serveHold(h)
	return nil
}

// serveHold sees a client through, beside.
func (s *Shim) serveHold(h *hold) {
	s.server.linger(h.done)
	go func() {
		defer close(h.done)
		defer s.holds.drop(h)
		defer h.lease.Close()
		s.keep(h)
	}()
}

func (hs *holds) drop(h *hold) {
	hs.mu.Lock()
	delete(hs.all, h)
	hs.mu.Unlock()
}

// end comes when the container has ended for good and its state is final.
func (hs *holds) end() {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.ended = true
	for h := range hs.all {
		if h.later {
			h.lease.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

// keep sees one client through.
func (s *Shim) keep(h *hold) {
	var err error
	if !h.heard {
		err = readStep(h.lease, make([]byte, 4096), func(p []byte, _ bool) {
			h.said, h.heard = append(h.said, p...), true
		})
	}
	if len(h.said) > 0 {
		s.gate.enter()
		defer s.gate.leave()
	}
	switch {
	case len(h.said) > 0 && h.said[0] == proto.LeaseDrop:
		h.sock.release()
		return
	case len(h.said) > 0:
		h.sock.say(h.said)
		h.sock.close()
		h.lease.Write([]byte{1})
		return
	case os.IsTimeout(err):
		h.sock.release() // a daemon is there, and it is the daemon's now
		return
	}
	// No daemon lives that knows this client.
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		buf := make([]byte, 64)
		for {
			if n, err := h.sock.f.Read(buf); n == 0 || err != nil {
				return
			}
		}
	}()
	st, came := s.rec.until(gone, func(st *proto.State) bool {
		return ended(st) || h.condition != proto.HoldRemoved && !st.Finished.Equal(h.last)
	})
	if came && ended(&st) {
		// Who reads the answer finds all that the container leaves.
		select {
		case <-s.server.sealed:
			st = s.rec.snapshot()
		case <-gone:
			came = false
		}
	}
	if came && h.condition == proto.HoldRemoved && !h.later && st.Status != proto.StatusRemoved {
		// Another daemon is there by now, and the removal is its.
		awaitRemoval(s.boot.DataDir, gone)
	}
	s.gate.enter()
	defer s.gate.leave()
	if came && (st.Status == proto.StatusRemoved || !h.later) {
		body := `{"StatusCode":` + strconv.Itoa(st.ExitCode) + "}\n"
		h.sock.say([]byte(strconv.FormatInt(int64(len(body)), 16) + "\r\n" + body + "\r\n0\r\n\r\n"))
	}
	h.sock.close()
	<-gone
}

// removalTime is how long a daemon may take to remove a container.
const removalTime = 10 * time.Second

// awaitRemoval waits until a folder has gone, or the client, or that takes too
// long.
func awaitRemoval(dir string, gone <-chan struct{}) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR); err != nil {
		return // it has gone
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

// say writes a few bytes at once.
func (s *socket) say(p []byte) error {
	_, err := s.f.Write(p)
	s.progress.Add(1)
	return err
}
