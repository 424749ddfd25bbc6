// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strconv"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/shim/cgroup"
	"holdfast/internal/shim/proto"
)

// stops sends signals to the container and ends it.
type stops struct {
	boot   *proto.Bootstrap
	rec    *record
	gate   *gate
	life   *supervisor
	verbs  *verbs
	sealed <-chan struct{} // closed when the state is final

	mu  sync.Mutex
	all map[*stopping]struct{} // in progress
}

// stopping is a stop in progress. It survives its caller and a re-exec of the shim.
type stopping struct {
	conn     *conn  // the caller's; nil if it had gone before a re-exec
	id       uint64 // of the request
	signal   syscall.Signal
	timeout  int // seconds, -1 for no limit
	signaled bool
	deadline time.Time // for SIGKILL; zero for none
}

// begin starts to end the container for good. The request is answered when the
// container has ended.
func (t *stops) begin(c *conn, id uint64, req proto.Stop) error {
	if !t.life.starting.Load() {
		return conflict("container is not running: it was never started")
	}
	x := &stopping{conn: c, id: id, signal: syscall.Signal(req.Signal), timeout: req.Timeout}
	if x.signal == 0 {
		x.signal = syscall.Signal(t.boot.StopSignal)
	}
	if x.signal <= 0 {
		x.signal = syscall.SIGTERM
	}
	if req.Default {
		x.timeout = t.boot.StopTimeout
	}
	// This also cancels a pending restart.
	t.rec.change(func(st *proto.State) { st.Manual, st.UserStopped = true, st.UserStopped || req.User })
	t.mu.Lock()
	t.all[x] = struct{}{}
	t.mu.Unlock()
	go t.carryOut(x)
	return nil
}

// carryOut carries a stop out, from the point that it had reached.
func (t *stops) carryOut(x *stopping) {
	// Wait for a launch in progress.
	st, _ := t.rec.waitFor(nil, func(st *proto.State) bool {
		return ended(st) || t.life.running() != nil && (st.Status == proto.StatusRunning || st.Status == proto.StatusPaused)
	})
	if r := t.life.running(); r != nil && !ended(&st) {
		t.terminate(r, x)
	}
	<-t.sealed
	if x.conn != nil {
		st := t.rec.snapshot()
		x.conn.answer(x.id, &st, nil)
		x.conn.answered()
	}
}

// terminate sends the signal, waits for the exit, and sends SIGKILL at the
// deadline.
func (t *stops) terminate(r *run, x *stopping) {
	t.gate.enter()
	if !x.signaled {
		if err := t.signal(r, x.signal); err != nil {
			logf("stop: %v", err)
		}
		x.signaled = true
		if x.timeout >= 0 {
			x.deadline = time.Now().Add(time.Duration(x.timeout) * time.Second)
		}
	}
	t.gate.leave()
	if !x.deadline.IsZero() {
		// The deadline that came with a re-exec is a time of day, and the clock may
		// have been set since.
		timer := time.NewTimer(min(time.Until(x.deadline), time.Duration(x.timeout)*time.Second))
		defer timer.Stop()
		select {
		case <-r.proc.exited:
			return
		case <-timer.C:
		}
		t.gate.enter()
		if x.signal != syscall.SIGKILL {
			t.rec.change(func(*proto.State) {}, note{proto.ActionKill, map[string]string{"signal": strconv.Itoa(int(syscall.SIGKILL))}})
		}
		if err := t.signal(r, syscall.SIGKILL); err != nil {
			logf("stop: %v", err)
		}
		t.gate.leave()
	}
	<-r.proc.exited
}

// signal sends a signal to the container's first process and resumes a frozen
// container, which could not handle it otherwise.
func (t *stops) signal(r *run, sig syscall.Signal) error {
	if err := r.proc.signal(sig); err != nil && err != syscall.ESRCH {
		return err
	}
	if st := t.rec.snapshot(); st.Status == proto.StatusPaused {
		return t.verbs.thaw(sig)
	}
	if is, _ := cgroup.Frozen(r.proc.pid); is {
		return t.verbs.thawUnrecorded()
	}
	return nil
}

func (t *stops) kill(k proto.Kill) error {
	if k.Signal < 0 || k.Signal > 64 {
		return invalid("invalid signal: %d", k.Signal)
	}
	r := t.life.running()
	if r == nil {
		if st := t.rec.snapshot(); k.Manual && st.Status == proto.StatusRestarting {
			t.rec.change(func(st *proto.State) { st.Manual, st.UserStopped = true, st.UserStopped || k.User })
			return nil
		}
		return conflict("container is not running")
	}
	if k.Manual {
		t.rec.change(func(st *proto.State) { st.Manual, st.UserStopped = true, st.UserStopped || k.User })
	}
	sig := syscall.Signal(k.Signal)
	if sig == syscall.SIGKILL {
		return t.signal(r, sig)
	}
	if t.rec.snapshot().Status == proto.StatusPaused {
		return t.signal(r, sig) // a frozen process can't handle the signal; Docker resumes it too
	}
	if err := r.proc.signal(sig); err == syscall.ESRCH {
		return conflict("container is not running")
	} else if err != nil {
		return err
	}
	return nil
}

// stopsSection has the stops in progress.
type stopsSection struct {
	Stops []savedStop `json:"stops,omitempty"`

	conns *connsSection
}

type savedStop struct {
	Conn     int       `json:"conn"`
	Request  uint64    `json:"request"`
	Signal   int       `json:"signal"`
	Timeout  int       `json:"timeout"`
	Signaled bool      `json:"signaled,omitempty"`
	Deadline time.Time `json:"deadline,omitzero"`
}

func (sec *stopsSection) descriptors() []*int { return nil }

func (sec *stopsSection) save(s *Shim) {
	s.stops.mu.Lock()
	defer s.stops.mu.Unlock()
	for x := range s.stops.all {
		// Of a caller that has disconnected the position is -1; the stop still
		// completes.
		sec.Stops = append(sec.Stops, savedStop{Conn: sec.conns.position(x.conn), Request: x.id, Signal: int(x.signal), Timeout: x.timeout,
			Signaled: x.signaled, Deadline: x.deadline})
	}
}

func (sec *stopsSection) restore(s *Shim) {
	for _, i := range sec.Stops {
		x := &stopping{conn: sec.conns.at(i.Conn), id: i.Request, signal: syscall.Signal(i.Signal), timeout: i.Timeout, signaled: i.Signaled, deadline: i.Deadline}
		if x.conn != nil {
			x.conn.calls++
		}
		s.stops.all[x] = struct{}{}
		go s.stops.carryOut(x)
	}
}
