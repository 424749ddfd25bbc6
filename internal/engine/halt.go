// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"

	"holdfast/internal/container"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/shim/proto"
)

// ContainerStop stops a container and waits until it has ended and its resources
// are given back.
func (e *Engine) ContainerStop(ctx context.Context, ref string, o StopOptions) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	return a.stop(ctx, o, true)
}

// stop halts a container. manual means that the user requested it; a stop by the
// daemon's own shutdown is not manual.
func (a *actor) stop(ctx context.Context, o StopOptions, manual bool) error {
	how, err := haltOf(o)
	if err != nil {
		return err
	}
	err = a.ask(ctx, container.AskStop, func(_ container.Action, done func(error)) {
		a.e.stopper.halt(a, how, manual, func(err error) {
			if err == nil && manual {
				a.emit("stop", nil)
			}
			done(err)
		})
	})
	if err != nil && !errors.Is(err, errNothing) {
		return fmt.Errorf("cannot stop container: %s: %w", a.view.Load().spec.Name, err)
	}
	return err
}

func haltOf(o StopOptions) (proto.Stop, error) {
	how := proto.Stop{Default: o.Timeout == nil}
	if o.Timeout != nil {
		how.Timeout = *o.Timeout
	}
	if o.Signal != "" {
		sig, err := parseSignal(o.Signal)
		if err != nil {
			return how, err
		}
		how.Signal = int(sig)
	}
	return how, nil
}

// halting is a stop that is under way. Several clients may stop a container at the
// same time: each stop has its own signal and time-out, and the first SIGKILL that
// is due ends the container.
type halting struct {
	how  proto.Stop
	kill time.Time // when SIGKILL is due; zero for never
	was  container.Desired
	done func(error) // idempotent
	// unshimmed: it goes on without a shim. calls are those of the OCI runtime then.
	unshimmed bool
	calls     sync.WaitGroup
}

// left is the stop as it is sent to another shim: with the remaining time.
func (h *halting) left() proto.Stop {
	how := h.how
	how.Default, how.Timeout = false, -1
	if !h.kill.IsZero() {
		how.Timeout = max(int((time.Until(h.kill)+time.Second-1)/time.Second), 0)
	}
	return how
}

// stopper stops containers, through their shims or without.
type stopper struct{ losses *losses }

// halt begins a stop, in the loop. The container remains Running until its process
// ends: all requests for a running container still work, including another stop.
// done is called when what the container used is given back.
func (s *stopper) halt(a *actor, how proto.Stop, manual bool, done func(error)) {
	how.User = manual && a.phase.Restarts == 0
	h := &halting{how: how, was: a.spec.Desired, done: done}
	if how.User {
		if err := a.persistDesired(container.DesiredStopped); err != nil {
			done(err)
			return
		}
		failpoint.Here("halt.recorded")
	}
	if manual {
		a.emit("kill", killAttributes(a.spec, how.Signal))
	}
	if wait := haltTime(a.spec, how); wait >= 0 {
		h.kill = time.Now().Add(wait)
	}
	a.halts = append(a.halts, h)
	a.publish()
	a.afterEnd(func() {
		a.removeHalt(h)
		if !h.unshimmed {
			done(nil)
			return
		}
		go func() {
			h.calls.Wait()
			a.post(func() { done(nil) })
		}()
	})
	if a.shim == nil {
		s.haltUnshimmed(a, h)
		return
	}
	s.send(a, a.shim, h, how)
}

// haltTime is how long a stop waits before it sends SIGKILL; negative means that it
// never does.
func haltTime(spec container.Spec, how proto.Stop) time.Duration {
	if !how.Default {
		return time.Duration(how.Timeout) * time.Second
	}
	if t := spec.StopTimeout; t != nil {
		return time.Duration(*t) * time.Second
	}
	return 10 * time.Second
}

// send passes a stop to a shim, in the loop.
func (s *stopper) send(a *actor, shim Shim, h *halting, how proto.Stop) {
	go func() {
		_, err := shim.Stop(context.Background(), how)
		failpoint.Here("halt.stopped")
		if err == nil || errdefs.IsUnavailable(err) {
			return // the shim's last report follows, or its connection ends without one
		}
		a.log.Error("the shim could not stop the container", "error", err)
		a.post(func() {
			if a.shim == shim && slices.Contains(a.halts, h) {
				a.removeHalt(h)
				h.done(errors.Join(err, a.persistDesired(h.was)))
			}
		})
	}()
}

// resend passes the stops that are under way to another shim, in the loop.
func (s *stopper) resend(a *actor, shim Shim) {
	for _, h := range a.halts {
		h.unshimmed = false
		s.send(a, shim, h, h.left())
	}
}

func (a *actor) removeHalt(h *halting) {
	a.halts = slices.DeleteFunc(a.halts, func(o *halting) bool { return o == h })
	a.publish()
}

// persistDesired persists the container's desired state, in the loop. On an error
// the desired state is unchanged.
func (a *actor) persistDesired(d container.Desired) error {
	was := a.spec.Desired
	if d == was {
		return nil
	}
	a.spec.Desired = d
	var err error
	if d == container.DesiredRunning {
		err = a.save()
	} else {
		err = a.saveEnding(true)
	}
	if err != nil {
		a.spec.Desired = was
	}
	a.publish()
	return err
}

// afterEnd runs fn, in the loop, once the present life is over.
func (a *actor) afterEnd(fn func()) {
	life := a.spec.Life
	var again func()
	again = func() {
		// In the state Removing only the end of the process matters: the removal gives
		// back the rest.
		over := a.spec.Life != life || !a.phase.State.Alive() && (a.phase.State != container.Removing || a.shim == nil)
		if !over {
			a.parked = append(a.parked, again)
			return
		}
		fn()
	}
	a.parked = append(a.parked, again)
}

// ContainerRestart stops a container, if it runs, and starts it. The caller may stop
// waiting; a restart that has begun is carried out.
func (e *Engine) ContainerRestart(ctx context.Context, ref string, o StopOptions) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	if _, err := haltOf(o); err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() { result <- a.restart(context.WithoutCancel(ctx), o) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *actor) restart(ctx context.Context, o StopOptions) error {
	// --rm must not remove the container between the stop and the start.
	a.post(func() { a.step(container.SawRestartBegin) })
	defer a.post(func() { a.step(container.SawRestartOver) })
	if err := a.stop(ctx, o, true); err != nil && !errors.Is(err, errNothing) {
		return err
	}
	if err := a.start(ctx); err != nil && !errors.Is(err, errNothing) {
		return err
	}
	a.await(func() { a.emit("restart", nil) })
	return nil
}

// ContainerKill sends a signal to a container's process. The signal is given by
// name, with or without SIG, or by number; empty means SIGKILL.
func (e *Engine) ContainerKill(ctx context.Context, ref, name string) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return fmt.Errorf("cannot kill container: %s: %w", ref, err)
	}
	sig := syscall.SIGKILL
	if name != "" {
		if sig, err = parseSignal(name); err != nil {
			return fmt.Errorf("cannot kill container: %s: %w", ref, err)
		}
	}
	return a.ask(ctx, container.AskKill, func(do container.Action, done func(error)) {
		// After an end that the user requested the restart policy must not start the
		// container again.
		manual := sig == syscall.SIGKILL || sig == stopSignal(a.spec)
		if do == container.Halt {
			a.e.stopper.halt(a, proto.Stop{Signal: int(sig), Default: true}, true, done)
			return
		}
		was := a.spec.Desired
		if manual {
			if err := a.persistDesired(container.DesiredStopped); err != nil {
				done(err)
				return
			}
		}
		a.emit("kill", killAttributes(a.spec, int(sig)))
		shim := a.shim
		if shim == nil {
			spec, rec := a.spec, a.rec
			go func() { done(a.effects.signalUnshimmed(spec, rec, sig)) }()
			return
		}
		paused := a.phase.State == container.Paused
		gone := make(chan struct{})
		if sig == syscall.SIGKILL {
			// As in Docker, the answer is sent when the container has ended.
			a.afterEnd(func() { close(gone) })
		}
		go func() {
			err := a.callShim(context.Background(), shim, func(s Shim) error {
				err := s.Kill(context.Background(), proto.Kill{Signal: int(sig), Manual: manual, User: manual})
				if err == nil && paused {
					awaitThaw(context.Background(), a, s)
				}
				return err
			})
			if err != nil && manual {
				a.await(func() {
					if a.shim == shim && a.spec.Desired == container.DesiredStopped {
						err = errors.Join(err, a.persistDesired(was))
					}
				})
			}
			if err == nil && sig == syscall.SIGKILL {
				wait := time.NewTimer(10 * time.Second)
				defer wait.Stop()
				select {
				case <-gone:
				case <-wait.C:
				}
			}
			done(err)
		}()
	})
}

// ContainerPause freezes a container's processes.
func (e *Engine) ContainerPause(ctx context.Context, ref string) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	return a.freeze(ctx, container.AskPause, "pause", Shim.Pause)
}

// ContainerUnpause thaws a container's processes.
func (e *Engine) ContainerUnpause(ctx context.Context, ref string) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	return a.freeze(ctx, container.AskUnpause, "unpause", Shim.Resume)
}

// freeze pauses or unpauses the container by a call to its shim.
func (a *actor) freeze(ctx context.Context, in container.Input, action string, call func(Shim, context.Context) (proto.State, error)) error {
	return a.ask(ctx, in, func(_ container.Action, done func(error)) {
		shim := a.shim
		if shim == nil {
			done(a.refusal(in, "runs without its shim and can't be "+action+"d"))
			return
		}
		go func() {
			var rec proto.State
			again := false
			err := a.callShim(context.Background(), shim, func(s Shim) (err error) {
				rec, err = call(s, context.Background())
				if found := s.Hello().State; again && errdefs.IsConflict(err) && (found.Status == proto.StatusPaused) == (in == container.AskPause) {
					rec, err = found, nil // the previous shim did it before it was killed
				}
				again = true
				return err
			})
			a.post(func() {
				if err == nil {
					// The container may have ended since the shim answered.
					if s := a.phase.State; rec.Seq >= a.rec.Seq && (s == container.Running || s == container.Paused) {
						switch {
						case rec.Status == proto.StatusPaused:
							a.rec = rec
							a.step(container.SawPaused)
						case rec.Status == proto.StatusRunning:
							a.rec = rec
							a.step(container.SawRunning)
						case in == container.AskUnpause:
							// It ran, and ended before the shim answered. Its end follows
							// as an event; until then it is not shown as paused.
							a.rec.Status = proto.StatusRunning
							a.step(container.SawRunning)
						}
					}
					a.emit(action, nil)
				}
				done(err)
			})
		}()
	})
}

// stopSignal is the signal that stops the container by default.
func stopSignal(spec container.Spec) syscall.Signal {
	if sig, err := parseSignal(spec.StopSignal); err == nil {
		return sig
	}
	return syscall.SIGTERM
}

// killAttributes are the attributes of the event of a signal; 0 is the one that stops
// the container by default.
func killAttributes(spec container.Spec, sig int) map[string]string {
	if sig == 0 {
		sig = int(stopSignal(spec))
	}
	return map[string]string{"signal": strconv.Itoa(sig)}
}

// lastSignal is SIGRTMAX.
const lastSignal = 64

// parseSignal parses a signal's name or number.
func parseSignal(name string) (syscall.Signal, error) {
	sig, err := signal.ParseSignal(name)
	switch {
	case err != nil:
		return 0, errs.Invalid("invalid signal: %s", name)
	case sig < 0 || sig > lastSignal:
		return 0, errs.Invalid("the linux daemon does not support signal %d", sig)
	}
	return sig, nil
}
