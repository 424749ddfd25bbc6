package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
	"holdfast/internal/failpoint"
	"holdfast/internal/filter"
	"holdfast/internal/shim/proto"
)

// ContainerRemove removes a container, with Force also one that runs.
func (e *Engine) ContainerRemove(ctx context.Context, ref string, o RemoveOptions) error {
	if o.Link {
		return invalid("links between containers are not kept as objects, there is none to remove: leave out the option link")
	}
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	in := container.AskRemove
	if o.Force {
		in = container.AskForceRemove
	}
	return a.ask(ctx, in, func(do container.Action, done func(error)) {
		if do == container.HaltAndRemove {
			a.emitKill(9)
		}
		a.remove(o, done)
	})
}

// remove takes the container away, in the loop and in the state Removing. The
// intent is persisted first, so that the next daemon finishes what a crash
// interrupts.
func (a *actor) remove(o RemoveOptions, done func(error)) {
	was := a.spec
	a.spec.Desired, a.spec.RemoveVolumes = container.DesiredRemoved, o.Volumes
	if err := a.saveEnding(); err != nil {
		// Nothing was begun.
		a.spec = was
		a.to(a.before)
		if a.state == container.Unknown {
			go a.retry()
		}
		done(fmt.Errorf("remove %s: %w", a.spec.Name, err))
		return
	}
	a.publish()
	failpoint.Here("remove.recorded")
	clients := a.clients
	a.clients = nil
	shim, spec, sandbox, mounts := a.shim, a.spec, a.sandbox, a.mounts
	go func() {
		for _, c := range clients {
			c.client.File.Close()
		}
		err := a.e.takeAway(shim, spec, mounts, func() {
			a.e.giveBack(spec.ID, sandbox, mounts)
			if shim != nil {
				// After the end, which the loop tells.
				a.await(func() { a.e.emitGivenBack(spec.ID, sandbox, mounts) })
			}
		})
		a.post(func() {
			if err != nil {
				a.log.Error("removal failed", "error", err)
				a.saw(container.SawRemoveFailed)
				done(fmt.Errorf("remove %s: %w", spec.Name, err))
				return
			}
			a.e.index.remove(a.id, a.spec.Name)
			a.e.stats.forget(a.id)
			if len(a.view.Load().places) > 0 {
				a.e.updateNames()
			}
			if a.rec.Status != proto.StatusRemoved { // the shim has told it else
				a.emit("destroy", nil)
			}
			failpoint.Here("remove.told")
			for _, w := range a.waiters {
				w.ch <- waitResponse(a.exit())
			}
			a.waiters = nil
			a.e.imagesUnused(a.spec.Image)
			done(nil)
			a.unpark()
			close(a.quit)
		})
	}()
}

// takeAway removes all that is a container's, on the host and on disk.
// Everything in it may have been done before. The record goes last: as long as
// something of the container is left, the record says whose it is.
func (e *Engine) takeAway(shim Shim, spec container.Spec, mounts []mountPoint, giveBack func()) error {
	ctx := context.Background()
	if shim != nil {
		if err := e.putOut(shim, spec); err != nil {
			return fmt.Errorf("kill its process: %w", err)
		}
	} else if err := e.killUnshimmed(spec.ID); err != nil {
		return err
	}
	failpoint.Here("remove.halted")
	giveBack()
	failpoint.Here("remove.gave-back")
	if spec.RemoveVolumes {
		e.removeAnonymous(mounts)
		failpoint.Here("remove.removed-volumes")
	}
	if err := e.clearRun(spec.ID); err != nil {
		return err
	}
	failpoint.Here("remove.cleared-run-directory")
	if err := e.images.RemoveRootfs(ctx, e.store.ContainerDir(spec.ID)); err != nil {
		return fmt.Errorf("remove its files: %w", err)
	}
	failpoint.Here("remove.removed-files")
	err := e.store.RemoveContainer(spec.ID)
	failpoint.Here("remove.removed-record")
	return err
}

// ContainersPrune removes all containers that don't run.
func (e *Engine) ContainersPrune(ctx context.Context, f filter.Args) (moby.PruneReport, error) {
	report := moby.PruneReport{ContainersDeleted: []string{}}
	if err := f.Check("label", "label!", "until"); err != nil {
		return report, invalid("%v", err)
	}
	until, err := untilOf(f)
	if err != nil {
		return report, err
	}
	for _, a := range e.index.all() {
		if ctx.Err() != nil {
			return report, ctx.Err()
		}
		v := a.view.Load()
		switch v.state {
		case container.Created, container.Exited, container.Dead:
		default:
			continue
		}
		if !until.IsZero() && !v.spec.Created.Before(until) || !labelsMatch(f, v.req.Config.Labels) {
			continue
		}
		size, _ := e.images.RootfsUsage(e.store.ContainerDir(a.id))
		switch err := e.ContainerRemove(ctx, a.id, RemoveOptions{}); {
		case err == nil:
			report.ContainersDeleted = append(report.ContainersDeleted, a.id)
			report.SpaceReclaimed += uint64(size)
		case errors.Is(err, errdefs.ErrConflict), errors.Is(err, errdefs.ErrNotFound):
			// It started or went meanwhile: no longer ours to prune.
		default:
			return report, err
		}
	}
	e.emitPrune("container", report.SpaceReclaimed)
	return report, nil
}
