// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"context"
	"log/slog"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/volume"

	"holdfast/internal/errs"
	"holdfast/internal/filter"
	"holdfast/internal/volume"
)

// Volumes implements the API's calls for volumes.
type Volumes struct {
	store      VolumeStore
	containers Containers
	emit       Emit
	log        *slog.Logger
}

// NewVolumes returns the volumes in a store.
func NewVolumes(store VolumeStore, containers Containers, emit Emit, log *slog.Logger) *Volumes {
	return &Volumes{store, containers, emit, log}
}

// VolumeStore is the local volume driver as the API's calls need it.
type VolumeStore interface {
	Create(o volume.CreateOptions) (v api.Volume, created bool, err error)
	Get(name string) (api.Volume, error)
	List() []api.Volume
	Remove(name string) error
	Usage(ctx context.Context, name string) (int64, error)
}

// VolumeCreate creates a volume, or returns the existing one of that name.
func (o *Volumes) VolumeCreate(ctx context.Context, r api.CreateRequest) (api.Volume, error) {
	if r.ClusterVolumeSpec != nil {
		return api.Volume{}, errs.NotImplemented("cluster volumes are not part of this release: use volumes of the host or bind mounts")
	}
	v, created, err := o.store.Create(volume.CreateOptions{Name: r.Name, Driver: r.Driver, DriverOpts: r.DriverOpts, Labels: r.Labels})
	if created {
		o.emit("volume", "create", v.Name, map[string]string{"driver": v.Driver})
	}
	return v, err
}

// VolumeList lists volumes.
func (o *Volumes) VolumeList(ctx context.Context, f filter.Args) (api.ListResponse, error) {
	r := api.ListResponse{Volumes: []api.Volume{}}
	if err := f.Check("dangling", "name", "driver", "label"); err != nil {
		return r, errs.Invalid("%v", err)
	}
	dangling, given, err := f.Bool("dangling")
	if err != nil {
		return r, errs.Invalid("%v", err)
	}
	for _, v := range o.store.List() {
		if !f.Match("name", v.Name) || !f.Exact("driver", v.Driver) || !f.KV("label", v.Labels) {
			continue
		}
		if given && (len(o.containers.OfVolume(v.Name)) == 0) != dangling {
			continue
		}
		r.Volumes = append(r.Volumes, v)
	}
	return r, nil
}

// VolumeInspect returns a volume.
func (o *Volumes) VolumeInspect(ctx context.Context, name string) (api.Volume, error) {
	return o.store.Get(name)
}

// VolumeRemove removes a volume that no container uses. With force it is no error if
// the volume does not exist.
func (o *Volumes) VolumeRemove(ctx context.Context, name string, force bool) error {
	if err := o.containers.Ready(ctx); err != nil {
		return err
	}
	if n := o.containers.Unread(); n > 0 && !force {
		return errs.Conflict("the records of %d containers can't be used, so the volume may be in use: repair them first (see the daemon's log), or use force", n)
	}
	v, err := o.store.Get(name)
	if err == nil {
		err = o.store.Remove(name)
	}
	if err != nil {
		if force && errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
	o.emit("volume", "destroy", name, map[string]string{"driver": v.Driver})
	return nil
}

// VolumesPrune removes volumes that no container uses: anonymous ones, or with
// all=true also named ones. A volume with mount options stays: its data is
// elsewhere, so that its removal would free no space, and only lose how to reach
// the data.
func (o *Volumes) VolumesPrune(ctx context.Context, f filter.Args) (api.PruneReport, error) {
	report := api.PruneReport{VolumesDeleted: []string{}}
	if err := o.containers.Ready(ctx); err != nil {
		return report, err
	}
	if n := o.containers.Unread(); n > 0 {
		return report, errs.Conflict("the records of %d containers can't be used, so volumes may be in use: repair them first (see the daemon's log), or remove volumes by name with force", n)
	}
	if err := f.Check("label", "label!", "all"); err != nil {
		return report, errs.Invalid("%v", err)
	}
	everything, _, err := f.Bool("all")
	if err != nil {
		return report, errs.Invalid("%v", err)
	}
	for _, v := range o.store.List() {
		if len(v.Options) > 0 || !volume.Anonymous(v) && !everything {
			continue
		}
		if !f.Labels(v.Labels) || len(o.containers.OfVolume(v.Name)) > 0 {
			continue
		}
		size, _ := o.store.Usage(ctx, v.Name)
		if err := o.store.Remove(v.Name); err != nil {
			o.log.Warn("a volume could not be pruned", "volume", v.Name, "error", err)
			continue
		}
		report.VolumesDeleted = append(report.VolumesDeleted, v.Name)
		report.SpaceReclaimed += uint64(size)
		o.emit("volume", "destroy", v.Name, map[string]string{"driver": v.Driver})
	}
	o.emit.Pruned("volume", report.SpaceReclaimed)
	return report, nil
}

// VolumeUsers returns the IDs of the containers that have a volume among their mounts.
func (o *Volumes) VolumeUsers(name string) []string { return o.containers.OfVolume(name) }

// VolumesUsage returns the disk usage of all volumes. The size of a volume that can't
// be measured is -1.
func (o *Volumes) VolumesUsage(ctx context.Context) *api.DiskUsage {
	u := &api.DiskUsage{Items: []api.Volume{}}
	for _, v := range o.store.List() {
		size, err := o.store.Usage(ctx, v.Name)
		if err != nil {
			if _, gone := o.store.Get(v.Name); errdefs.IsNotFound(gone) {
				continue
			}
			size = -1
		}
		refs := int64(len(o.containers.OfVolume(v.Name)))
		v.UsageData = &api.UsageData{RefCount: refs, Size: size}
		u.Items = append(u.Items, v)
		u.TotalCount++
		u.TotalSize += max(size, 0)
		if refs > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += max(size, 0)
		}
	}
	return u
}
