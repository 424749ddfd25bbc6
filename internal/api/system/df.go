package system

import (
	"net/http"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// legacyUsage is the answer before API 1.52. 1.52 sent both; a pointer that is
// nil leaves a list out, one to an empty list doesn't.
type legacyUsage struct {
	LayersSize int64
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
	sums := sumsOnly(du)
	if r.Version.Before(53) {
		return wire.WriteJSON(w, http.StatusOK, struct {
			system.DiskUsage
			legacyUsage
		}{sums, old})
	}
	return wire.WriteJSON(w, http.StatusOK, sums)
}

// usageKinds reads the types that are asked for; all if none is (and before
// 1.42, which didn't have the parameter).
func usageKinds(r *wire.Request) (engine.DiskUsageOptions, error) {
	kinds := r.Query["type"]
	if r.Version.Before(42) || len(kinds) == 0 {
		return engine.DiskUsageOptions{Containers: true, Images: true, Volumes: true, BuildCache: true}, nil
	}
	var o engine.DiskUsageOptions
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

func legacyOf(du system.DiskUsage, o engine.DiskUsageOptions) legacyUsage {
	var l legacyUsage
	if o.Images {
		items := []image.Summary{}
		if u := du.ImageUsage; u != nil {
			l.LayersSize, items = u.TotalSize, wire.NonNil(u.Items)
		}
		l.Images = &items
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

func sumsOnly(du system.DiskUsage) system.DiskUsage {
	if u := du.ImageUsage; u != nil {
		c := *u
		c.Items, du.ImageUsage = nil, &c
	}
	if u := du.ContainerUsage; u != nil {
		c := *u
		c.Items, du.ContainerUsage = nil, &c
	}
	if u := du.VolumeUsage; u != nil {
		c := *u
		c.Items, du.VolumeUsage = nil, &c
	}
	if u := du.BuildCacheUsage; u != nil {
		c := *u
		c.Items, du.BuildCacheUsage = nil, &c
	}
	return du
}
