package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

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
		if manual {
			a.emitKill(how.Signal)
		}
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
	if manual && !a.restarting {
		a.spec.Desired = container.DesiredStopped
		if err := a.save(); err != nil {
			a.to(container.Running)
			done(err)
			return
		}
		failpoint.Here("halt.recorded")
	}
	how.User = manual && !a.restarting
	shim := a.shim
	a.afterStop(func() { done(nil) })
	if shim == nil {
		a.haltUnshimmed(how)
		return
	}
	go func() {
		_, err := shim.Stop(context.Background(), how)
		failpoint.Here("halt.stopped")
		if err != nil {
			select {
			case <-shim.Done(): // it is gone, and its last words tell the rest
			default:
				a.log.Error("the shim could not stop the container", "error", err)
				a.post(func() {
					if a.state == container.Stopping && a.shim == shim {
						a.to(stateOf(a.rec))
					}
					done(err)
				})
			}
		}
	}()
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

// ContainerRestart stops a container, if it runs, and starts it.
func (e *Engine) ContainerRestart(ctx context.Context, ref string, o StopOptions) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	if _, err := haltOf(o); err != nil {
		return err
	}
	// --rm must not strike between the two halves.
	hold := func(on bool) { a.post(func() { a.restarting = on }) }
	hold(true)
	defer hold(false)
	if err := a.stop(ctx, o, true); err != nil && !errors.Is(err, errNothing) {
		return err
	}
	if err := a.start(ctx); err != nil && !errors.Is(err, errNothing) {
		return err
	}
	a.post(func() { a.emit("restart", nil) })
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
		a.emitKill(int(sig))
		if do == container.Halt {
			a.halt(proto.Stop{Signal: int(sig), Default: true}, true, done)
			return
		}
		if manual && a.spec.Desired != container.DesiredStopped {
			a.spec.Desired = container.DesiredStopped
			if err := a.save(); err != nil {
				done(err)
				return
			}
		}
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
			err := shim.Kill(context.Background(), proto.Kill{Signal: int(sig), Manual: manual, User: manual})
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
	return e.freeze(ctx, ref, container.AskPause, "pause", Shim.Pause)
}

// ContainerUnpause thaws them.
func (e *Engine) ContainerUnpause(ctx context.Context, ref string) error {
	return e.freeze(ctx, ref, container.AskUnpause, "unpause", Shim.Resume)
}

func (e *Engine) freeze(ctx context.Context, ref string, in container.Input, action string, call func(Shim, context.Context) (proto.State, error)) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	return a.ask(ctx, in, func(_ container.Action, done func(error)) {
		shim := a.shim
		if shim == nil {
			done(a.refusal(in, "runs without its shim and can't be "+action+"d"))
			return
		}
		go func() {
			rec, err := call(shim, context.Background())
			a.post(func() {
				if err == nil {
					a.rec = rec
					if a.state == container.Running || a.state == container.Paused {
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
