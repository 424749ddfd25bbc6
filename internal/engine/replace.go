// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// What happens when a shim is killed, in this order. The container runs on
// throughout.
//
//  1. actor.watchShim sees that the connection has ended. The lifecycle's action is
//     Search, and requests wait from now on (container.Searching).
//  2. restorer.observeUntilKnown observes what is left. If the shim does answer,
//     adopter.attach connects to it again. If the shim recorded the end before it
//     died, restorer.applyRecordedEnd handles that end. If no process recorded the
//     end, actor.recordLostEnd and losses.clearLost do. If the shim does not answer,
//     the container is Unknown and is observed again.
//  3. If the container's process lives, or its exit code can still be read
//     (descriptors.canSucceed), the verdict is Watch: replacer.findSuccessor asks for
//     a new shim, and retries with a backoff.
//  4. effects.spawnSuccessor binds the published ports again. It passes the bootstrap
//     of the last shim and the daemon's descriptors to the new shim.
//  5. replacer.successorFound attaches to the new shim, and passes waiting clients and
//     stops on to it. Waiting requests proceed.
//  6. If there is no successor after successorPatience, requests proceed without a
//     shim (replacer.withoutSuccessor, container.Unattended), and stops that the last
//     shim had go on without one. losses.watchProcess waits for the end, and
//     unshimmed.go does what is possible. The attempts continue.

// Optional interfaces of the engine's dependencies that a successor needs. If one is
// missing, the container has no successor or its ports are not reserved again.
type (
	bootstraps interface {
		// Bootstrap returns the bootstrap of the last shim in a run directory.
		Bootstrap(runDir string) (proto.Bootstrap, error)
	}
	reserver interface {
		// Reserve binds a sandbox's host ports again. After an error it should be tried again.
		Reserve(ctx context.Context, s network.Sandbox) ([]network.Reserved, error)
	}
)

// replacer gives a container a new shim when its shim was killed.
type replacer struct {
	*progress
	adopter *adopter
	losses  *losses
	stopper *stopper
}

const (
	// successorPatience is how long requests wait for a new shim.
	successorPatience = 3 * time.Second
	successorLimit    = 10 * time.Second // of one attempt
)

// findSuccessor starts a new shim for a container without one. It is called in the
// loop or before the loop runs, and does not wait. rec is the previous shim's last
// record.
func (r *replacer) findSuccessor(a *actor, rec proto.State) {
	if r.observes.Load() {
		go r.losses.watchProcess(a, rec)
		return
	}
	go func() {
		began := time.Now()
		watched := false
		for wait := (backoff{retryFirst, retryMost}); ; {
			shim, err := a.effects.spawnSuccessor(a, rec)
			if err != nil {
				// A shim spawned by a daemon that died meanwhile may still be running; use
				// it.
				if there, derr := a.effects.dial(a.id); derr == nil {
					shim, err = there, nil
				}
			}
			if err == nil {
				if !a.post(func() { r.successorFound(a, shim) }) {
					shim.Close()
				}
				return
			}
			never := errdefs.IsNotFound(err)
			if !watched && (never || time.Since(began) > successorPatience) {
				watched = true
				a.log.Error("the container runs on without a shim: no new one could be started", "error", err)
				a.post(func() { r.withoutSuccessor(a) })
				// Between two runs there is no process to watch. The next shim starts
				// the next run. Without any, the last run was the last.
				if rec.Pid != 0 || never {
					go r.losses.watchProcess(a, rec)
				}
			}
			if never {
				return
			}
			if !wait.wait(a) {
				a.post(func() { r.withoutSuccessor(a) })
				return
			}
			if v := a.view.Load(); watched && (v.shim != nil || !v.state.Alive()) {
				return // it has a shim or has ended meanwhile
			}
		}
	}()
}

func (h *hostEffects) dial(id string) (Shim, error) {
	ctx, cancel := context.WithTimeout(context.Background(), helloTimeout)
	defer cancel()
	return h.shims.Dial(ctx, h.store.RunDir(id))
}

// withoutSuccessor lets requests that wait for a new shim proceed without one, in the
// loop.
func (r *replacer) withoutSuccessor(a *actor) {
	a.step(container.SawNoSuccessor)
	if a.shim == nil && a.phase.State.Alive() {
		r.stopper.haltAllUnshimmed(a)
	}
}

// successorFound attaches to the new shim, in the loop.
func (r *replacer) successorFound(a *actor, shim Shim) {
	if a.shim != nil || !a.phase.State.Alive() || r.observes.Load() {
		shim.Close() // the shim itself runs on, and the next observation finds it
		a.step(container.SawNoSuccessor)
		return
	}
	a.log.Info("a new shim has adopted the container", "shim", shim.Hello().Pid)
	a.rec = shim.Hello().State
	a.enter(a.phase.Found(container.Adopt, container.Observation{Shim: container.ShimAnswers, Record: recordOf(a.rec)}, a.hasRun()))
	r.adopter.attach(a, shim)
	go a.handOverWaits(shim)
	r.stopper.resend(a, shim) // clients wait for the result of these stops
	a.publish()
	a.unpark()
}

// spawnSuccessor spawns the shim that takes over. ErrNotFound means that no attempt
// can succeed, now or later.
func (h *hostEffects) spawnSuccessor(a *actor, rec proto.State) (Shim, error) {
	run := h.store.RunDir(a.id)
	reader, ok := h.shims.(bootstraps)
	if !ok {
		return nil, errs.NotFound("this daemon can't replace shims")
	}
	boot, err := reader.Bootstrap(run)
	if err != nil {
		return nil, err // missing if the last shim was of an old release
	}
	if boot.Life != rec.Life || boot.ID != a.id {
		return nil, errs.NotFound("%s belongs to another life of the container", filepath.Join(run, proto.BootstrapFile))
	}
	ctx, cancel := context.WithTimeout(context.Background(), successorLimit)
	defer cancel()

	v := a.view.Load()
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if nets, ok := h.networks.(reserver); ok && v.sandbox.ID != "" {
		reserved, err := nets.Reserve(ctx, v.sandbox)
		if err != nil {
			return nil, err
		}
		for _, r := range reserved {
			boot.Ports = append(boot.Ports, proto.Port{Proto: r.Proto, Target: r.Target})
			files = append(files, r.File)
		}
	}
	failpoint.Here("replace.reserved")

	// Copies, because the loop may close the originals at any time.
	kept, closeKept, err := a.descriptors.copy(rec)
	defer closeKept()
	if err != nil {
		return nil, err
	}
	if kept.Pidfd == nil && rec.Pid != 0 {
		if f := openProcess(rec); f != nil {
			defer f.Close()
			kept.Pidfd = f
		}
	}
	shim, err := h.shims.Spawn(ctx, client.Options{
		Binary: h.config.Load().ShimPath, Bootstrap: boot, Ports: files, Release: h.release, Adopt: &kept,
	})
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%s: %s", h.config.Load().ShimPath, err) // not ErrNotFound: the binary may reappear after a package upgrade
		}
		return nil, err
	}
	failpoint.Here("replace.spawned")
	return shim, nil
}

// disconnectDelay bounds how long it takes after a call has failed until the
// connection is closed.
const disconnectDelay = time.Second

// callShim calls fn with the shim. If the shim was killed meanwhile, it calls fn once
// more with the successor. fn must be idempotent.
func (a *actor) callShim(ctx context.Context, shim Shim, fn func(Shim) error) error {
	err := fn(shim)
	if errdefs.IsConflict(err) {
		awaitEnd(ctx, a, shim)
	}
	if !errdefs.IsUnavailable(err) {
		return err
	}
	timer := time.NewTimer(disconnectDelay)
	defer timer.Stop()
	select {
	case <-shim.Done():
	case <-timer.C:
		return err
	case <-ctx.Done():
		return err
	}
	next := make(chan Shim, 1)
	ended := false // set before the send
	var look func()
	look = func() {
		if a.shim == shim || a.phase.Link == container.Searching || a.phase.State == container.Ending {
			a.parked = append(a.parked, look)
			return
		}
		ended = !a.phase.State.Alive()
		next <- a.shim
	}
	if !a.post(look) {
		return err
	}
	select {
	case s := <-next:
		switch {
		case ended:
			return errs.Conflict("container %s is not running", a.id)
		case s == nil:
			return err // the container runs without a shim
		}
		return fn(s)
	case <-a.quit:
	case <-ctx.Done():
	}
	return err
}
