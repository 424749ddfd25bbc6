// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
	"holdfast/internal/engine/objects"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/filter"
	"holdfast/internal/shim/proto"
)

// ContainerRemove removes a container, with Force also a running one.
func (e *Engine) ContainerRemove(ctx context.Context, ref string, o RemoveOptions) error {
	if o.Link {
		return e.removeLink(ctx, ref)
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
			a.emit("kill", killAttributes(a.spec, 9))
		}
		a.remove(o, done)
	})
}

// remove begins the container's removal, in the loop. The intent is persisted first,
// so that the next daemon finishes a removal that a crash interrupts. If that
// fails, nothing was begun.
func (a *actor) remove(o RemoveOptions, done func(error)) {
	was := a.spec
	a.spec.Desired, a.spec.RemoveVolumes = container.DesiredRemoved, o.Volumes
	if err := a.saveEnding(false); err != nil {
		a.spec = was
		a.step(container.SawRemoveFailed) // the state is Removing if a crash interrupted the removal
		done(fmt.Errorf("remove %s: %w", a.spec.Name, err))
		return
	}
	a.step(container.SawRemoving)
	failpoint.Here("remove.recorded")
	clients := a.clients
	a.clients = nil
	shim, spec, sandbox, mounts := a.shim, a.spec, a.sandbox, a.mounts
	go func() {
		for _, c := range clients {
			c.client.File.Close()
		}
		err := a.effects.deleteContainer(shim, spec, mounts, func() {
			a.effects.giveBack(spec.ID, sandbox, mounts)
			if shim != nil {
				// These events come after the event of the end, which the loop journals.
				a.await(func() { a.e.journal.givenBack(spec.ID, sandbox, mounts) })
			}
		})
		if err != nil {
			a.post(func() {
				a.log.Error("removal failed", "error", err)
				a.step(container.SawRemoveFailed)
				done(fmt.Errorf("remove %s: %w", spec.Name, err))
			})
			return
		}
		a.await(func() {
			a.e.index.remove(a.id, a.spec.Name)
			a.e.stats.forget(a.id)
			if len(a.view.Load().places) > 0 {
				a.e.names.update()
			}
			if a.rec.Pid != 0 {
				// The removal has ended the process, and its shim was gone.
				a.recordLostEnd(false)
				a.publish() // for clients that wait for the removal
			}
			a.journalDeath()                         // if no shim reported it, and the removal was faster
			if a.rec.Status != proto.StatusRemoved { // else the shim has journalled it
				a.e.journal.destroyed(a.spec, a.req)
			}
			failpoint.Here("remove.told")
		})
		a.effects.forget(spec.ID)
		failpoint.Here("remove.forgotten")
		a.post(func() {
			a.waiters.removed(a.exit())
			if err := holdSnapshots(context.Background(), a.e.images, a.e.index); err != nil {
				a.log.Warn("the set of layers in use could not be updated: layers of the removed container may stay", "error", err)
			}
			done(nil)
			a.unpark()
			close(a.quit)
		})
	}()
}

// deleteContainer removes everything that belongs to a container, on the host and on
// disk. It is idempotent. The record is removed last, so that as long as something
// is left, it has an owner. It is only set aside, so that the next daemon can
// journal the removal if this one dies before it does.
func (h *hostEffects) deleteContainer(shim Shim, spec container.Spec, mounts []mountPoint, giveBack func()) error {
	ctx := context.Background()
	if shim != nil {
		if err := h.stopShim(shim, spec); err != nil {
			return fmt.Errorf("kill the container's process: %w", err)
		}
		if err := h.runtimes.removeCgroups(spec); err != nil {
			return err
		}
	} else if err := h.killUnshimmed(spec.ID); err != nil {
		return err
	}
	failpoint.Here("remove.halted")
	giveBack()
	failpoint.Here("remove.gave-back")
	if spec.RemoveVolumes {
		h.removeAnonymous(mounts)
		failpoint.Here("remove.removed-volumes")
	}
	if err := h.mounter.clearRun(spec.ID); err != nil {
		return err
	}
	failpoint.Here("remove.cleared-run-directory")
	if err := h.images.RemoveRootfs(ctx, h.store.ContainerDir(spec.ID)); err != nil {
		return fmt.Errorf("remove its files: %w", err)
	}
	failpoint.Here("remove.removed-files")
	err := h.store.SetAside(spec.ID)
	failpoint.Here("remove.set-aside")
	return err
}

// forget deletes what deleteContainer has left, when the event of the removal is
// journalled.
func (h *hostEffects) forget(id string) {
	if err := h.store.DeleteAside(id); err != nil {
		h.log.Warn("the files of a removed container could not be deleted, the next start of the daemon retries it", "container", id[:12], "error", err)
		return
	}
	h.journal.events.Forget(id + "/")
}

// ContainersPrune removes all containers that do not run.
func (e *Engine) ContainersPrune(ctx context.Context, f filter.Args) (moby.PruneReport, error) {
	report := moby.PruneReport{}
	if err := f.Check("label", "label!", "until"); err != nil {
		return report, errs.Invalid("%v", err)
	}
	until, err := f.Until(time.Now())
	if err != nil {
		return report, errs.Invalid("%v", err)
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
		if !until.IsZero() && !v.spec.Created.Before(until) || !f.Labels(v.req.Config.Labels) {
			continue
		}
		size, _ := e.images.RootfsUsage(e.store.ContainerDir(a.id))
		switch err := e.ContainerRemove(ctx, a.id, RemoveOptions{}); {
		case err == nil:
			report.ContainersDeleted = append(report.ContainersDeleted, a.id)
			report.SpaceReclaimed += uint64(size)
		case errors.Is(err, errdefs.ErrConflict), errors.Is(err, errdefs.ErrNotFound):
			// The container was started or removed meanwhile.
		default:
			return report, err
		}
	}
	objects.Emit(func(typ, action, id string, at map[string]string) { e.journal.emit(typ, action, id, at, time.Now()) }).Pruned("container", report.SpaceReclaimed)
	return report, nil
}
