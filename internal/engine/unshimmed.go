// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/container"
	"holdfast/internal/errs"
	"holdfast/internal/shim/proto"
)

// A container whose shim was killed runs on, and gets a new shim (replace.go). If no
// shim can be started, the daemon watches the container's process and can stop it
// through the OCI runtime.

// signalUnshimmed sends a signal to a container's process without its shim, and thaws the
// container: a frozen process does not receive the signal. The OCI runtime refuses to thaw
// a container that is not frozen, which is fine. signalUnshimmed returns when the call of
// the runtime has ended: a command without a daemon ends after its answer, and must not
// leave a process behind.
func (h *hostEffects) signalUnshimmed(spec container.Spec, rec proto.State, sig syscall.Signal) error {
	if err := signalProcess(spec, rec, sig); err != nil {
		return err
	}
	if !alive(rec) {
		return nil
	}
	if err := h.runtimes.thaw(spec); err != nil && rec.Status == proto.StatusPaused && alive(rec) {
		return fmt.Errorf("kill %s: the container is paused: %w", spec.Name, err)
	}
	return nil
}

// signalProcess sends a signal to a container's process without its shim.
func signalProcess(spec container.Spec, rec proto.State, sig syscall.Signal) error {
	notRunning := errs.Conflict("cannot kill container: %s: container %s is not running", spec.Name, spec.ID)
	if !alive(rec) {
		return notRunning
	}
	fd, err := unix.PidfdOpen(rec.Pid, 0)
	if err != nil {
		return fmt.Errorf("kill %s: %w", spec.Name, err)
	}
	defer unix.Close(fd)
	if !alive(rec) { // the process may have ended before the pidfd was opened
		return notRunning
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// haltAllUnshimmed goes on with the stops that are under way, in the loop. The shim
// that had them is gone, and nobody knows whether it sent their signals.
func (s *stopper) haltAllUnshimmed(a *actor) {
	if a.rec.Pid == 0 {
		return // between two runs: the next shim gets them
	}
	for _, h := range a.halts {
		if !h.unshimmed {
			s.haltUnshimmed(a, h)
		}
	}
}

// haltUnshimmed stops a container that has no shim, in the loop.
func (s *stopper) haltUnshimmed(a *actor, h *halting) {
	h.unshimmed = true
	if a.rec.Pid == 0 { // between two runs: there is nothing to wait for
		go s.losses.watchProcess(a, a.rec)
		return
	}
	sig := syscall.Signal(h.how.Signal)
	if sig == 0 {
		sig = stopSignal(a.spec)
	}
	s.signal(a, h, sig)
	if h.kill.IsZero() {
		return
	}
	time.AfterFunc(time.Until(h.kill), func() {
		a.post(func() {
			if a.shim == nil && slices.Contains(a.halts, h) {
				s.signal(a, h, syscall.SIGKILL)
			}
		})
	})
}

// signal sends a signal of a stop without the shim, in the loop.
func (s *stopper) signal(a *actor, h *halting, sig syscall.Signal) {
	spec, rec := a.spec, a.rec
	h.calls.Go(func() {
		if err := a.effects.signalUnshimmed(spec, rec, sig); err != nil && alive(rec) {
			a.log.Warn("the container could not be sent a signal of its stop", "signal", int(sig), "error", err)
		}
	})
}
