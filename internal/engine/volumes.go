package engine

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/volume"

	"holdfast/internal/container"
	"holdfast/internal/filter"
	"holdfast/internal/network"
	volumes "holdfast/internal/volume"
)

// VolumeCreate creates a volume, or finds the one of that name.
func (e *Engine) VolumeCreate(ctx context.Context, r volume.CreateRequest) (volume.Volume, error) {
	if r.ClusterVolumeSpec != nil {
		return volume.Volume{}, invalid("cluster volumes need swarm mode, which this release does not have")
	}
	v, created, err := e.volumes.Create(volumes.CreateOptions{Name: r.Name, Driver: r.Driver, DriverOpts: r.DriverOpts, Labels: r.Labels})
	if created {
		e.emitVolume("create", v.Name, map[string]string{"driver": v.Driver})
	}
	return v, err
}

// VolumeList lists volumes.
func (e *Engine) VolumeList(ctx context.Context, f filter.Args) (volume.ListResponse, error) {
	r := volume.ListResponse{Volumes: []volume.Volume{}, Warnings: []string{}}
	if err := f.Check("dangling", "name", "driver", "label"); err != nil {
		return r, invalid("%v", err)
	}
	dangling, given, err := f.Bool("dangling")
	if err != nil {
		return r, invalid("%v", err)
	}
	for _, v := range e.volumes.List() {
		if !f.Match("name", v.Name) || !f.Exact("driver", v.Driver) || !f.KV("label", v.Labels) {
			continue
		}
		if given && (len(e.volumeUsers(v.Name, "")) == 0) != dangling {
			continue
		}
		r.Volumes = append(r.Volumes, v)
	}
	return r, nil
}

// VolumeInspect tells about a volume.
func (e *Engine) VolumeInspect(ctx context.Context, name string) (volume.Volume, error) {
	return e.volumes.Get(name)
}

// VolumeRemove removes a volume that no container uses. With force a volume
// that isn't there is fine.
func (e *Engine) VolumeRemove(ctx context.Context, name string, force bool) error {
	if err := e.ready(ctx); err != nil {
		return err
	}
	if n := len(e.unread); n > 0 && !force {
		return conflict("the records of %d containers can't be used, and the volume may be theirs: repair them first (see the daemon's log), or use force", n)
	}
	v, err := e.volumes.Get(name)
	if err == nil {
		err = e.volumes.Remove(name)
	}
	if err != nil {
		if force && isNotFound(err) {
			return nil
		}
		return err
	}
	e.emitVolume("destroy", name, map[string]string{"driver": v.Driver})
	return nil
}

// VolumesPrune removes the volumes that no container uses: anonymous ones, or
// with all=true those with a name too. One with mount options stays, as what it
// holds is elsewhere, and how to reach it is all that a removal would destroy.
func (e *Engine) VolumesPrune(ctx context.Context, f filter.Args) (volume.PruneReport, error) {
	report := volume.PruneReport{VolumesDeleted: []string{}}
	if err := e.ready(ctx); err != nil {
		return report, err
	}
	if n := len(e.unread); n > 0 {
		return report, conflict("the records of %d containers can't be used, and volumes may be theirs: repair them first (see the daemon's log), or remove volumes by name with force", n)
	}
	if err := f.Check("label", "label!", "all"); err != nil {
		return report, invalid("%v", err)
	}
	everything, _, err := f.Bool("all")
	if err != nil {
		return report, invalid("%v", err)
	}
	for _, v := range e.volumes.List() {
		if len(v.Options) > 0 || !volumes.Anonymous(v) && !everything {
			continue
		}
		if !labelsMatch(f, v.Labels) || len(e.volumeUsers(v.Name, "")) > 0 {
			continue
		}
		size, _ := e.volumes.Usage(ctx, v.Name)
		if err := e.volumes.Remove(v.Name); err != nil {
			e.log.Warn("volume not pruned", "volume", v.Name, "error", err)
			continue
		}
		report.VolumesDeleted = append(report.VolumesDeleted, v.Name)
		report.SpaceReclaimed += uint64(size)
		e.emitVolume("destroy", v.Name, map[string]string{"driver": v.Driver})
	}
	e.emitPrune("volume", report.SpaceReclaimed)
	return report, nil
}

// VolumeUsers are the containers that have a volume among their mounts.
func (e *Engine) VolumeUsers(name string) []string { return e.volumeUsers(name, "") }

// volumeUsers are the containers that have a volume among their mounts: it is
// derived from their records, so that it can't go wrong over a restart. A
// container whose removal takes its volumes along uses them no more.
func (e *Engine) volumeUsers(name, except string) []string {
	var users []string
	for _, a := range e.index.all() {
		if a.id == except {
			continue
		}
		v := a.view.Load()
		for _, m := range v.mounts {
			if m.volume() && m.Name == name && !(m.Anonymous && v.spec.Desired == container.DesiredRemoved && v.spec.RemoveVolumes) {
				users = append(users, a.id)
				break
			}
		}
	}
	return users
}

// restoreVolumes tells the volumes who of the containers has them mounted.
func (e *Engine) restoreVolumes(actors []*actor, found []found) error {
	users := map[string][]string{}
	for i, a := range actors {
		switch found[i].verdict {
		case container.Keep, container.Run, container.Lose, container.Clear:
			continue
		}
		for _, m := range a.mounts {
			if m.volume() {
				users[m.Name] = append(users[m.Name], a.id)
			}
		}
	}
	return e.volumes.Restore(users)
}

func (e *Engine) emitVolume(action, name string, attributes map[string]string) {
	e.emit("volume", action, name, attributes, time.Now())
}

// emitMounts tells which volumes a container's life uses.
func (e *Engine) emitMounts(id string, mounts []mountPoint) {
	for _, m := range mounts {
		if m.volume() {
			e.emitVolume("mount", m.Name, map[string]string{
				"container": id, "destination": m.Destination, "driver": m.Driver,
				"propagation": string(m.Propagation), "read/write": strconv.FormatBool(m.RW),
			})
		}
	}
}

// emitUnmounts tells that it uses them no more.
func (e *Engine) emitUnmounts(id string, mounts []mountPoint) {
	for _, m := range mounts {
		if m.volume() {
			e.emitVolume("unmount", m.Name, map[string]string{"container": id, "driver": m.Driver})
		}
	}
}

// emitGivenBack tells of what giveBack returned.
func (e *Engine) emitGivenBack(id string, sandbox network.Sandbox, mounts []mountPoint) {
	e.emitNetworks("disconnect", sandbox)
	e.emitUnmounts(id, mounts)
}

func (e *Engine) emitPrune(typ string, reclaimed uint64) {
	e.emit(typ, "prune", "", map[string]string{"reclaimed": fmt.Sprint(reclaimed)}, time.Now())
}
