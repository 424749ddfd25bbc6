// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/shim/proto"
)

// finishCreations completes creations that a crash interrupted after the record was
// written, and rolls back the others. No client was answered. It runs after the
// restore of networks and volumes, and before anything is created.
func (r *restorer) finishCreations(ctx context.Context) error {
	unborn, err := r.store.Unborn()
	if err != nil {
		return err
	}
	for _, u := range unborn {
		log := r.log.With("container", u.ID[:min(12, len(u.ID))])
		if u.Complete {
			if a, err := r.index.find(u.ID); err == nil { // otherwise its record can't be used, and it is left alone
				r.journal.created(a.spec, a.req, a.spec.Created)
			}
			if err := r.store.EndCreate(u.ID); err != nil {
				log.Warn("the creation could not be marked as complete", "error", err)
			}
			continue
		}
		log.Info("rolling back a creation that a crash interrupted")
		left := false
		for _, name := range u.Volumes {
			switch err := r.volumes.Remove(name); {
			case err == nil:
				r.journal.volume("destroy", name, map[string]string{"driver": "local"})
			case !isNotFound(err):
				log.Error("the anonymous volume of an interrupted creation could not be removed", "volume", name, "error", err)
				left = true
			}
		}
		if left {
			continue // the folder stays, because it names the volume for the next start
		}
		if err := r.effects.mounter.clearRun(u.ID); err != nil {
			log.Error("the run directory of an interrupted creation could not be removed", "error", err)
			continue
		}
		if err := r.images.RemoveRootfs(ctx, r.store.ContainerDir(u.ID)); err != nil {
			log.Error("the files of an interrupted creation could not be removed", "error", err)
			continue
		}
		if err := r.store.RemoveContainer(u.ID); err != nil {
			log.Error("the folder of an interrupted creation could not be removed", "error", err)
		}
	}
	return nil
}

// finishRemovals finishes removals that a crash interrupted when the containers were
// gone already: the events may be missing.
func (r *restorer) finishRemovals() error {
	removed, err := r.store.Aside()
	if err != nil {
		return err
	}
	for _, c := range removed {
		// The shim of a container with --rm has journalled its removal.
		if rec, err := r.shims.Exit(c.Dir); err != nil || rec.Status != proto.StatusRemoved {
			decoded, err := decodeSpec(c.Spec)
			if err != nil {
				decoded.req = request{Config: &moby.Config{Image: c.Spec.Image.Ref}}
			}
			r.journal.destroyed(*c.Spec, decoded.req)
		}
		r.effects.forget(c.Spec.ID)
	}
	return nil
}
