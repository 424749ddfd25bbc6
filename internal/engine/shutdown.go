// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/container"
	"holdfast/internal/shim/proto"
)

// killTime bounds how long a shutdown waits for a container that it has killed.
const killTime = 5 * time.Second

// Shutdown ends the engine. With live restore the containers run on, unless the whole
// host shuts down (hostToo). Without it all containers are stopped: each is killed
// after its own time-out, and all after the shutdown time-out. Shutdown reports
// whether it stopped the containers.
func (e *Engine) Shutdown(ctx context.Context, hostToo bool) (containersStopped bool) {
	e.progress.close()
	cfg := e.config.Load()
	if cfg.LiveRestore && !hostToo {
		return false
	}
	limit := time.Duration(cfg.ShutdownTimeout) * time.Second
	actors := e.index.all()
	for _, a := range actors {
		// As in Docker, a container's longer time-out extends the shutdown time-out.
		if t := a.view.Load().spec.StopTimeout; t != nil {
			if *t < 0 {
				limit = -1
			} else if own := time.Duration(*t+5) * time.Second; limit >= 0 && own > limit {
				limit = own
			}
		}
	}
	if limit >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	var wg sync.WaitGroup
	for _, a := range actors {
		if !a.view.Load().state.Alive() {
			continue
		}
		wg.Go(func() {
			err := a.stop(ctx, StopOptions{}, false)
			if errors.Is(err, context.DeadlineExceeded) {
				err = killNow(a)
			}
			if err != nil && !errors.Is(err, errNothing) {
				a.log.Warn("the container could not be stopped at shutdown", "error", err)
			}
		})
	}
	wg.Wait()
	return true
}

// killNow kills a container that has not stopped within the shutdown time-out, and
// waits until it has ended.
func killNow(a *actor) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	a.log.Warn("the shutdown time-out is over, killing the container")
	err := a.ask(ctx, container.AskKill, func(_ container.Action, done func(error)) {
		shim := a.shim
		if shim == nil {
			spec, rec := a.spec, a.rec
			go func() { done(a.effects.signalUnshimmed(spec, rec, syscall.SIGKILL)) }()
			return
		}
		go func() { done(shim.Kill(ctx, proto.Kill{Signal: int(syscall.SIGKILL)})) }()
	})
	if err != nil {
		return err
	}
	return a.stop(ctx, StopOptions{}, false)
}
