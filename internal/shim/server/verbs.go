// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/internal/shim/cgroup"
	"holdfast/internal/shim/proto"
)

// verbs are the runtime's commands for a container that runs: pause, resume and
// update. One runs at a time.
type verbs struct {
	id      string
	rec     *record
	runtime *ociRuntime
	life    *supervisor

	mu     sync.Mutex    // held during a command
	pauses atomic.Uint64 // counts the pauses that were begun, successful or not
	// lender is the connection for whose lifetime the container is paused, or nil.
	// It changes only while mu is held.
	lender atomic.Pointer[conn]
	// unpausePending: a signal resumes the container, and no unpause event was
	// recorded yet.
	unpausePending atomic.Bool
}

// takeUnpause reports whether an unpause event is due, which the caller records.
func (v *verbs) takeUnpause() bool { return v.unpausePending.CompareAndSwap(true, false) }

// thaw resumes the container for a signal, which a frozen process can't handle. The
// unpause is recorded before the exit, which may come before the runtime returns.
// SIGKILL ends a paused container without an unpause event, as in Docker.
func (v *verbs) thaw(sig syscall.Signal) error {
	v.unpausePending.Store(sig != syscall.SIGKILL)
	_, err := v.resume()
	if v.takeUnpause() && err == nil {
		v.rec.change(func(*proto.State) {}, note{action: proto.ActionUnpause})
	}
	return err
}

// thawUnrecorded resumes a container that was frozen by others, or by a call of the
// runtime that the previous shim had begun.
func (v *verbs) thawUnrecorded() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.retry("resume", proto.StatusRunning)
}

// update changes the container's resources, an OCI LinuxResources as JSON.
func (v *verbs) update(runDir string, resources []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.life.running() == nil {
		return conflict("container is not running")
	}
	file := filepath.Join(runDir, "resources.json")
	if err := os.WriteFile(file, resources, 0o600); err != nil {
		return err
	}
	defer os.Remove(file)
	if err := v.runtime.call(noStdio, "update", "--resources", file, v.id); err != nil {
		// In most cases the kernel rejects a value, which the runtime's message names.
		return v.runtimeError(proto.KindInvalid, "update", err)
	}
	return nil
}

// pause freezes the container until resume is called or, if lender is not nil,
// until that connection ends.
func (v *verbs) pause(lender *conn) (proto.State, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pauses.Add(1)
	st, err := v.command("pause", proto.StatusRunning, proto.StatusPaused, func(st *proto.State) {
		if lender == nil && st.Health != nil {
			// Its health is unknown until the next check, and Docker reports that as
			// unhealthy.
			h := *st.Health
			h.Status = healthUnhealthy
			st.Health = &h
		}
	})
	if err != nil {
		return st, err
	}
	v.lender.Store(nil)
	if lender == nil {
		return st, nil
	}
	select {
	case <-lender.done: // the connection ended meanwhile, so resumeLent was called already
		return v.command("resume", proto.StatusPaused, proto.StatusRunning)
	default:
		v.lender.Store(lender)
		return st, nil
	}
}

func (v *verbs) resume() (proto.State, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	st, err := v.command("resume", proto.StatusPaused, proto.StatusRunning)
	if err == nil {
		v.lender.Store(nil)
	}
	return st, err
}

// resumeLent thaws the container if it is frozen for the connection c, which has
// ended.
func (v *verbs) resumeLent(c *conn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.lender.CompareAndSwap(c, nil) || v.rec.snapshot().Status != proto.StatusPaused {
		return
	}
	if _, err := v.command("resume", proto.StatusPaused, proto.StatusRunning); err != nil {
		logf("thaw after the daemon that paused the container has gone: %v", err)
	}
}

// command runs a runtime command that leads from one status to another, and then
// applies the changes to the state. It is called with the lock held.
func (v *verbs) command(name, from, to string, then ...func(*proto.State)) (proto.State, error) {
	if st := v.rec.snapshot(); st.Status != from {
		return st, conflict("container is not %s: it is %s", from, st.Status)
	}
	if err := v.retry(name, to); err != nil {
		return v.rec.snapshot(), v.runtimeError(proto.KindRuntime, name, err)
	}
	return v.rec.change(func(st *proto.State) {
		if st.Status == from { // the container may have ended meanwhile
			st.Status = to
			for _, fn := range then {
				fn(st)
			}
		}
	}), nil
}

// runtimeError is the error for a failed runtime command. If the container has
// ended meanwhile, the runtime is not to blame, and the error is a conflict.
func (v *verbs) runtimeError(kind, verb string, err error) error {
	if r := v.life.running(); r == nil || r.proc.hasEnded() {
		return conflict("container is not running")
	}
	return &proto.Error{Kind: kind, Message: "OCI runtime " + verb + " failed: " + err.Error(), ExitCode: exitRuntime}
}

// verbRetryTime bounds how long a pause or a resume is retried, and verbRetryMost
// the wait between two attempts.
const (
	verbRetryTime = 5 * time.Second
	verbRetryMost = 200 * time.Millisecond
)

// retry calls the runtime until the container is frozen, or thawed. Under load
// the kernel can't always freeze all processes within the runtime's time limit; the
// runtimes advise to retry. If a freeze fails in the end, the container is thawed,
// so that it is not left half frozen.
func (v *verbs) retry(verb, to string) error {
	began := time.Now()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, verbRetryMost) {
		err := v.runtime.call(noStdio, verb, v.id)
		if err == nil || v.hasStatus(to) {
			return nil
		}
		r := v.life.running()
		if r == nil || time.Since(began) > verbRetryTime {
			if to == proto.StatusPaused && r != nil {
				if is, _ := cgroup.Frozen(r.proc.pid); is { // partially
					if terr := v.retry("resume", proto.StatusRunning); terr != nil {
						logf("thaw after a failed pause: %v", terr)
					}
				}
			}
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.proc.exited:
		}
		timer.Stop()
	}
}

// hasStatus reports whether the kernel has the container frozen or thawed already,
// as status wants it. A runtime fails if asked for the state that the container is
// in.
func (v *verbs) hasStatus(status string) bool {
	r := v.life.running()
	if r == nil {
		return false
	}
	is, known := cgroup.Frozen(r.proc.pid)
	return known && is == (status == proto.StatusPaused)
}
