// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/teardown"
)

// supervisor runs the container's life, from the first run to the end of the last
// one. One goroutine, supervise, does it:
//
//	launch ─▶ the process exits ─▶ processExited ─▶ backoff ─▶ launch ─▶ …
//	                                     │
//	                                     ▼ no restart
//	                                   finish ─▶ exit
//
// Requests run in other goroutines. They influence this one only through the record
// (State.Manual) and through signals.
type supervisor struct {
	shim *Shim // whose parts it brings together

	starting atomic.Bool   // start was called, or the container was adopted
	done     chan struct{} // closed when the shim may exit
	delay    time.Duration // restart delay before the current run, changed within the gate
	ending   []*client     // clients of the last run; only supervise uses it
	due      time.Time     // end of the restart delay, monotonic; only supervise uses it

	mu      sync.Mutex
	current *run // nil while no process runs
	rows    uint // size of the terminal, also for the next run
	cols    uint
}

// supervise runs the container until its end. If r is nil it begins with the wait
// for the next run; delay is the last restart delay.
func (v *supervisor) supervise(r *run, delay time.Duration) {
	s := v.shim
	for {
		again := true
		var saved <-chan struct{}
		if r != nil {
			<-r.proc.exited
			s.gate.enter()
			again, delay, saved = v.processExited(r, delay)
		} else {
			s.gate.enter()
		}
		for again {
			v.delay = delay
			s.gate.leave()
			stopped := !v.backoff(delay)
			s.gate.enter()
			if stopped || v.runDirRemoved() {
				v.cancelRestart()
				saved = v.recordExit()
				again = false
				break
			}
			var err error
			if r, err = v.launch(); err == nil {
				break
			}
			// A failed restart counts as a run that failed at once.
			again, delay, saved = v.restartFailed(err, delay)
		}
		if !again {
			v.finish(saved) // inside the gate, so that no upgrade can begin any more
			return
		}
		s.gate.leave()
	}
}

// processExited handles the exit of the container's process: it reads the remaining
// output, records the exit and removes the cgroup. The exit is recorded before the
// runtime's delete returns, so that clients need not wait for that. A restart waits
// for it.
func (v *supervisor) processExited(r *run, last time.Duration) (again bool, delay time.Duration, saved <-chan struct{}) {
	s := v.shim
	now := time.Now()
	finished, ran := now.UTC(), now.Sub(r.began)
	code := r.proc.exitCode()
	oom := r.oom.End(r.proc.status.Signaled() && r.proc.status.Signal() == syscall.SIGKILL)
	v.mu.Lock()
	v.current = nil
	v.mu.Unlock()
	policy := s.restartPolicy()
	r.proc.closePidfd()

	deleted := make(chan struct{})
	go func() {
		defer close(deleted)
		v.deleteContainer()
	}()
	var clients []*client
	complete := r.io.drain()
	if complete {
		clients = s.out.endRun(false)
	}

	notes := make([]note, 0, 3)
	if s.verbs.takeUnpause() {
		notes = append(notes, note{action: proto.ActionUnpause})
	}
	if oom {
		notes = append(notes, note{action: proto.ActionOOM})
	}
	notes = append(notes, note{proto.ActionDie, map[string]string{
		"exitCode": strconv.Itoa(code), "execDuration": strconv.Itoa(int(ran / time.Second))}})
	st := s.rec.change(func(st *proto.State) {
		st.Pid, st.PidStart, st.Finished, st.ExitCode, st.OOMKilled = 0, 0, finished, code, oom
		if r.proc.lost {
			st.Error = unknownExit
		}
		delay, again = restartAfter(policy, ending{exitCode: code, ran: ran, manual: st.Manual, restarts: st.RestartCount, last: last})
		if again {
			st.Status, st.NextRestart = proto.StatusRestarting, finished.Add(delay)
			st.RestartCount++
		} else {
			st.Status = proto.StatusExited
		}
	}, notes...)
	v.due = now.Add(delay)
	if !again {
		saved = v.recordExit() // concurrently with the delete
	}
	<-deleted
	if !complete {
		// Processes outside the container's pid namespace kept the streams open. They
		// died with the cgroup.
		r.io.drain()
		clients = s.out.endRun(false)
	}
	r.io.close()
	if again {
		go func() {
			s.server.awaitAcks(st.Seq)
			endStreams(clients)
		}()
	} else {
		v.ending = clients
	}
	return again, delay, saved
}

// backoff waits until the restart is due. It reports false if the user stops the
// container meanwhile.
func (v *supervisor) backoff(delay time.Duration) bool {
	s := v.shim
	st := s.rec.snapshot()
	timer := time.NewTimer(pauseUntil(v.due, st.NextRestart, delay))
	defer timer.Stop()
	due := make(chan struct{})
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-timer.C:
			close(due)
		case <-stop:
		}
	}()
	_, stopped := s.rec.waitFor(due, func(st *proto.State) bool { return st.Manual })
	return !stopped
}

// pauseUntil returns how long to wait for a restart. due is zero where an earlier shim,
// or an earlier binary of this one, has begun the pause: then the record has its end by
// the time of day, and the clock may have been set since.
func pauseUntil(due, recorded time.Time, delay time.Duration) time.Duration {
	if due.IsZero() {
		due = recorded
	}
	return min(delay, time.Until(due))
}

func (v *supervisor) cancelRestart() {
	v.shim.rec.change(func(st *proto.State) {
		st.Status, st.NextRestart = proto.StatusExited, time.Time{}
	})
}

// restartFailed treats a failed launch as a run of zero length.
func (v *supervisor) restartFailed(err error, last time.Duration) (again bool, delay time.Duration, saved <-chan struct{}) {
	s := v.shim
	logf("restart: %v", err)
	v.deleteContainer()
	now := time.Now()
	policy := s.restartPolicy()
	s.rec.change(func(st *proto.State) {
		st.Error = startFailure(err).Error()
		st.ExitCode, st.Finished = startExitCode(err.Error()), now.UTC()
		delay, again = restartAfter(policy, ending{exitCode: st.ExitCode, manual: st.Manual, restarts: st.RestartCount, last: last})
		if again {
			st.NextRestart = now.UTC().Add(delay)
			st.RestartCount++
		} else {
			st.Status, st.NextRestart = proto.StatusExited, time.Time{}
		}
	})
	v.due = now.Add(delay)
	if !again {
		saved = v.recordExit()
	}
	return again, delay, saved
}

// recordExit writes the durable exit record in a new goroutine. The channel is
// closed when that is done.
func (v *supervisor) recordExit() <-chan struct{} {
	s := v.shim
	saved := make(chan struct{})
	st := s.rec.snapshot()
	go func() {
		defer close(saved)
		if err := writeExit(s.boot.DataDir, st); err != nil {
			logf("exit record: %v", err)
		}
	}()
	return saved
}

// enterAndFinish is finish for a caller outside the gate.
func (v *supervisor) enterAndFinish(saved <-chan struct{}) {
	v.shim.gate.enter() // and never leave
	v.finish(saved)
}

// finish ends the container's life: no run will follow. Once the last journal entry
// has been sent, nothing in the run directory belongs to the shim any more. It is
// called inside the gate, which is never left again.
func (v *supervisor) finish(saved <-chan struct{}) {
	s := v.shim
	v.ending = append(v.ending, s.out.endRun(true)...)
	s.out.close()
	v.teardown()
	<-saved
	notes := []note{{action: proto.ActionExited}}
	status := proto.StatusExited
	if s.boot.AutoRemove && !s.server.daemonConnected() {
		teardown.Logs(s.boot.Log)
		status = proto.StatusRemoved
		notes = append(notes, note{action: proto.ActionDestroy})
	}
	s.server.stopListening()
	st := s.rec.change(func(st *proto.State) { st.Status = status }, notes...)
	s.rec.seal()
	if status == proto.StatusRemoved {
		if err := writeExit(s.boot.DataDir, st); err != nil {
			logf("exit record: %v", err)
		}
	}
	v.exit()
}

// exit lets the shim exit once all clients and connections have been served.
func (v *supervisor) exit() {
	v.shim.server.finish(v.ending)
	close(v.done)
}

// shutdown ends a shim whose container never ran.
func (v *supervisor) shutdown() error {
	s := v.shim
	if st := s.rec.snapshot(); ended(&st) {
		return nil // the shim is about to exit anyway
	}
	if !v.starting.CompareAndSwap(false, true) {
		return conflict("container was started: stop it first")
	}
	v.ending = s.out.endRun(true)
	v.teardown()
	s.server.stopListening()
	s.rec.seal()
	go v.exit()
	return nil
}

// abandon ends a shim whose container never ran when no process is connected any more:
// the daemon that started it has died. The next daemon undoes the start, and may have
// done so before this shim was there to be found.
func (v *supervisor) abandon() {
	if v == nil || v.starting.Load() {
		return
	}
	if err := v.shutdown(); err == nil {
		logf("the daemon has gone before it started the container")
	}
}

func (v *supervisor) teardown() {
	s := v.shim
	if v.runDirRemoved() {
		// The names of all that it would remove may be those of the next life.
		s.ports.Close()
		return
	}
	s.mu.Lock()
	batches := s.boot.Teardown.Netlink
	s.mu.Unlock()
	teardown.Netlink(batches)
	// Before the end is recorded: the next life binds the same ports at once.
	s.ports.Close()
	if teardown.Unmount(s.boot.Teardown.Unmount) {
		teardown.Remove(s.boot.RunDir, s.boot.Teardown.Remove)
	}
	for _, name := range []string{"stdin", "stdout", "stderr", proto.PidFile, proto.LedgerFile} {
		unix.Unlinkat(s.dirfd, name, 0)
	}
}
