package engine

import "context"

// takeBackUnborn takes back what a crash left of creates that were never
// answered. It comes after the restore of networks and volumes, and before
// anything is created anew.
func (e *Engine) takeBackUnborn(ctx context.Context) error {
	unborn, err := e.store.Unborn()
	if err != nil {
		return err
	}
	for _, u := range unborn {
		log := e.log.With("container", u.ID[:min(12, len(u.ID))])
		log.Info("a creation that a crash interrupted is taken back")
		left := false
		for _, name := range u.Volumes {
			switch err := e.volumes.Remove(name); {
			case err == nil:
				e.emitVolume("destroy", name, map[string]string{"driver": "local"})
			case !isNotFound(err):
				log.Error("its anonymous volume is not removed", "volume", name, "error", err)
				left = true
			}
		}
		if left {
			continue // its folder tells the next start of the volume
		}
		if err := e.clearRun(u.ID); err != nil {
			log.Error("its run directory is not removed", "error", err)
			continue
		}
		if err := e.images.RemoveRootfs(ctx, e.store.ContainerDir(u.ID)); err != nil {
			log.Error("its files are not removed", "error", err)
			continue
		}
		if err := e.store.RemoveContainer(u.ID); err != nil {
			log.Error("its folder is not removed", "error", err)
		}
	}
	return nil
}
