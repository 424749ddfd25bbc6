// SPDX-License-Identifier: Apache-2.0

package system

import (
	"net/http"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine/sysinfo"
)

// legacyUsage is the answer before API 1.52. Since 1.52 dockerd sends both
// forms, unless verbose is requested. A nil pointer omits a list; a pointer to
// an empty list does not.
type legacyUsage struct {
	LayersSize *int64               `json:",omitempty"`
	Images     *[]image.Summary     `json:",omitempty"`
	Containers *[]container.Summary `json:",omitempty"`
	Volumes    *[]volume.Volume     `json:",omitempty"`
	BuildCache *[]build.CacheRecord `json:",omitempty"`
}

func (h *handlers) diskUsage(w http.ResponseWriter, r *wire.Request) error {
	o, err := usageKinds(r)
	if err != nil {
		return err
	}
	du, err := h.backend.DiskUsage(r.Context(), o)
	if err != nil {
		return err
	}
	verbose := !r.Version.Before(52) && r.Bool("verbose")
	old := legacyOf(du, o)
	if r.Version.Before(52) {
		return wire.WriteJSON(w, http.StatusOK, old)
	}
	if verbose {
		return wire.WriteJSON(w, http.StatusOK, du)
	}
	return wire.WriteJSON(w, http.StatusOK, struct {
		system.DiskUsage
		legacyUsage
	}{du, old})
}

// usageKinds reads the requested types. Without any, and before 1.42, which did
// not have the parameter, all are requested.
func usageKinds(r *wire.Request) (sysinfo.DiskUsageOptions, error) {
	kinds := r.Query["type"]
	if r.Version.Before(42) || len(kinds) == 0 {
		return sysinfo.DiskUsageOptions{Containers: true, Images: true, Volumes: true, BuildCache: true}, nil
	}
	var o sysinfo.DiskUsageOptions
	for _, kind := range kinds {
		switch system.DiskUsageObject(kind) {
		case system.ContainerObject:
			o.Containers = true
		case system.ImageObject:
			o.Images = true
		case system.VolumeObject:
			o.Volumes = true
		case system.BuildCacheObject:
			o.BuildCache = true
		default:
			return o, wire.Invalid("unknown object type: %q: want container, image, volume or build-cache", kind)
		}
	}
	return o, nil
}

func legacyOf(du system.DiskUsage, o sysinfo.DiskUsageOptions) legacyUsage {
	var l legacyUsage
	if o.Images {
		items, size := []image.Summary{}, int64(0)
		if u := du.ImageUsage; u != nil {
			items, size = wire.NonNil(u.Items), u.TotalSize
		}
		l.Images, l.LayersSize = &items, &size
	}
	if o.Containers {
		items := []container.Summary{}
		if u := du.ContainerUsage; u != nil {
			items = wire.NonNil(u.Items)
		}
		l.Containers = &items
	}
	if o.Volumes {
		items := []volume.Volume{}
		if u := du.VolumeUsage; u != nil {
			items = wire.NonNil(u.Items)
		}
		l.Volumes = &items
	}
	if o.BuildCache {
		items := []build.CacheRecord{}
		if u := du.BuildCacheUsage; u != nil {
			items = wire.NonNil(u.Items)
		}
		l.BuildCache = &items
	}
	return l
}
