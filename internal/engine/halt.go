package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"

	"holdfast/internal/container"
	"holdfast/internal/failpoint"
	"holdfast/internal/shim/proto"
)

// ContainerStop stops a container and waits until it is gone.
func (e *Engine) ContainerStop(ctx context.Context, ref string, o StopOptions) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	return a.stop(ctx, o, true)
}

// stop halts a container. manual says that the user wants it stopped; the
// daemon's own end does not.
func (a *actor) stop(ctx context.Context, o StopOptions, manual bool) error {
	how, err := haltOf(o)
	if err != nil {
		return err
	}
	err = a.ask(ctx, container.AskStop, func(_ container.Action, done func(error)) {
		a.halt(how, manual, func(err error) {
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

// halt ends the container's life, in the loop and in the state Stopping. done
// is called when what it used is given back.
func (a *actor) halt(how proto.Stop, manual bool, done func(error)) {
	how.User = manual && a.restarts == 0
	a.halting = how
	was := a.spec.Desired
	if how.User {
		if err := a.want(container.DesiredStopped); err != nil {
			a.to(a.before)
			done(err)
			return
		}
		failpoint.Here("halt.recorded")
	}
	if manual {
		a.emitKill(how.Signal)
	}
	shim := a.shim
	var failure error
	a.afterStop(func() { done(failure) })
	if shim == nil {
		a.haltUnshimmed(how)
		return
	}
	go func() {
		_, err := shim.Stop(context.Background(), how)
		failpoint.Here("halt.stopped")
		if err == nil || errdefs.IsUnavailable(err) {
			return // its last words tell the rest, or that there are none
		}
		a.log.Error("the shim could not stop the container", "error", err)
		a.post(func() {
			if a.state == container.Stopping && a.shim == shim {
				failure = errors.Join(err, a.want(was))
				a.to(stateOf(a.rec))
			}
		})
	}()
}

// want persists what is wanted of the container, in the loop. What can't be
// persisted is not wanted.
func (a *actor) want(d container.Desired) error {
	was := a.spec.Desired
	if d == was {
		return nil
	}
	a.spec.Desired = d
	save := a.save
	if d != container.DesiredRunning {
		save = a.saveEnding
	}
	err := save()
	if err != nil {
		a.spec.Desired = was
	}
	a.publish()
	return err
}

// afterStop runs fn once the state has passed on from Stopping.
func (a *actor) afterStop(fn func()) {
	var again func()
	again = func() {
		if a.state == container.Stopping {
			a.parked = append(a.parked, again)
			return
		}
		fn()
	}
	a.parked = append(a.parked, again)
}

// ContainerRestart stops a container, if it runs, and starts it. Who asks may
// stop to wait; a restart that has begun is carried out.
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
	// --rm must not strike between the two halves.
	a.post(func() { a.restarts++ })
	defer a.post(func() { a.restarts-- })
	if err := a.stop(ctx, o, true); err != nil && !errors.Is(err, errNothing) {
		return err
	}
	if err := a.start(ctx); err != nil && !errors.Is(err, errNothing) {
		return err
	}
	a.await(func() { a.emit("restart", nil) })
	return nil
}

// ContainerKill sends a signal: by name, with or without SIG, or by number.
// Empty is SIGKILL.
func (e *Engine) ContainerKill(ctx context.Context, ref, name string) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	sig := syscall.SIGKILL
	if name != "" {
		if sig, err = parseSignal(name); err != nil {
			return err
		}
	}
	return a.ask(ctx, container.AskKill, func(do container.Action, done func(error)) {
		// What ends the container by the user's wish is no failure to restart
		// from.
		manual := sig == syscall.SIGKILL || sig == a.stopSignal()
		if do == container.Halt {
			a.halt(proto.Stop{Signal: int(sig), Default: true}, true, done)
			return
		}
		was := a.spec.Desired
		if manual {
			if err := a.want(container.DesiredStopped); err != nil {
				done(err)
				return
			}
		}
		a.emitKill(int(sig))
		shim := a.shim
		if shim == nil {
			done(a.signalUnshimmed(sig))
			return
		}
		gone := make(chan struct{})
		if sig == syscall.SIGKILL {
			// The answer is due when the container is gone, as in Docker.
			a.afterStop(func() { close(gone) })
		}
		go func() {
			err := a.insist(context.Background(), shim, func(s Shim) error {
				return s.Kill(context.Background(), proto.Kill{Signal: int(sig), Manual: manual, User: manual})
			})
			if err != nil && manual {
				a.await(func() {
					if a.shim == shim && a.spec.Desired == container.DesiredStopped {
						err = errors.Join(err, a.want(was))
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

// ContainerUnpause thaws them.
func (e *Engine) ContainerUnpause(ctx context.Context, ref string) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	return a.freeze(ctx, container.AskUnpause, "unpause", Shim.Resume)
}

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
			err := a.insist(context.Background(), shim, func(s Shim) (err error) {
				rec, err = call(s, context.Background())
				if found := s.Hello().State; again && errdefs.IsConflict(err) && (found.Status == proto.StatusPaused) == (in == container.AskPause) {
					rec, err = found, nil // the last shim was killed after it had done it
				}
				again = true
				return err
			})
			a.post(func() {
				if err == nil {
					// The container may have ended since the shim answered.
					if rec.Seq >= a.rec.Seq && (a.state == container.Running || a.state == container.Paused) {
						a.rec = rec
						a.to(stateOf(rec))
					}
					a.emit(action, nil)
				}
				done(err)
			})
		}()
	})
}

// stopSignal is the container's own.
func (a *actor) stopSignal() syscall.Signal {
	if sig, err := parseSignal(a.spec.StopSignal); err == nil {
		return sig
	}
	return syscall.SIGTERM
}

func (a *actor) emitKill(sig int) {
	if sig == 0 {
		sig = int(a.stopSignal())
	}
	a.emit("kill", map[string]string{"signal": strconv.Itoa(sig)})
}

// parseSignal takes a signal's name or number.
func parseSignal(name string) (syscall.Signal, error) {
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return 0, invalid("Invalid signal: %s", name)
	}
	return sig, nil
}

// stateOf is the state that a shim's record tells.
func stateOf(rec proto.State) container.State {
	switch rec.Status {
	case proto.StatusRunning:
		return container.Running
	case proto.StatusPaused:
		return container.Paused
	case proto.StatusRestarting:
		return container.Restarting
	}
	return container.Settle(!rec.Started.IsZero())
}
