package image

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func (s *Store) inspect(ctx context.Context, name string, m match, platform *ocispec.Platform) (image.InspectResponse, error) {
	d, err := s.describe(ctx, m.entry)
	if err != nil {
		return image.InspectResponse{}, err
	}
	target := d.target
	out := image.InspectResponse{
		ID:          d.id(),
		RepoTags:    d.tags,
		RepoDigests: d.digests,
		Descriptor:  &target,
		Metadata:    image.Metadata{LastTagTime: d.updated},
		GraphDriver: &storage.DriverData{Name: s.driver, Data: map[string]string{}},
	}
	v, err := s.choose(ctx, name, d.variants, platform)
	if err != nil {
		return image.InspectResponse{}, err
	}
	conf := v.config
	out.Config = &conf.Config
	out.Author = conf.Author
	out.Architecture = conf.Architecture
	out.Variant = conf.Variant
	out.Os = conf.OS
	out.OsVersion = conf.OSVersion
	if conf.Created != nil {
		out.Created = formatTime(*conf.Created)
	}
	if n := len(conf.History); n > 0 {
		out.Comment = conf.History[n-1].Comment
	}
	out.RootFS.Type = conf.RootFS.Type
	for _, diff := range conf.RootFS.DiffIDs {
		out.RootFS.Layers = append(out.RootFS.Layers, diff.String())
	}
	if out.Size, err = s.contentSize(ctx, d.target); err != nil {
		return out, err
	}
	unpacked, err := s.unpackedSize(ctx, v)
	if err != nil && !errdefs.IsNotFound(err) {
		return out, err
	}
	out.Size += unpacked
	if platform == nil {
		if out.Manifests, err = s.manifests(ctx, d); err != nil {
			return out, err
		}
	}
	return out, nil
}

// History lists how an image came to be, the last step first.
func (s *Store) History(ctx context.Context, name string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	ctx = s.ctx(ctx)
	m, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	d, err := s.describe(ctx, m.entry)
	if err != nil {
		return nil, err
	}
	v, err := s.choose(ctx, name, d.variants, platform)
	if err != nil {
		return nil, err
	}
	sizes, err := s.layerSizes(ctx, v)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	out := []image.HistoryResponseItem{}
	for _, step := range v.config.History {
		item := image.HistoryResponseItem{ID: "<missing>", Comment: step.Comment, CreatedBy: step.CreatedBy, Tags: []string{}}
		if step.Created != nil {
			item.Created = step.Created.Unix()
		}
		if !step.EmptyLayer && len(sizes) > 0 {
			item.Size, sizes = sizes[0], sizes[1:]
		}
		out = append(out, item)
	}
	slices.Reverse(out)
	if len(out) > 0 {
		out[0].ID = d.id()
		out[0].Tags = d.tags
	}
	return out, nil
}

// Tag gives the image src another name. A name that meant another image moves.
func (s *Store) Tag(ctx context.Context, src, dst string) error {
	ctx = s.ctx(ctx)
	to, err := tagTarget(dst)
	if err != nil {
		return err
	}
	m, err := s.find(ctx, src)
	if err != nil {
		return err
	}
	if _, err := s.record(ctx, to.String(), m.target); err != nil {
		return err
	}
	s.onEvent("tag", m.id(), familiar(to.String()), nil)
	return nil
}

// DiskUsage tells what images take and what a prune could give back.
// containers counts an image's containers.
func (s *Store) DiskUsage(ctx context.Context, containers func(imageID string) int64) (image.DiskUsage, error) {
	items, err := s.List(ctx, ListOptions{SharedSize: true, Containers: containers})
	if err != nil {
		return image.DiskUsage{}, err
	}
	total, err := s.diskUsage(s.ctx(ctx))
	if err != nil {
		return image.DiskUsage{}, err
	}
	du := image.DiskUsage{Items: items, TotalCount: int64(len(items)), TotalSize: total}
	for _, i := range items {
		if i.Containers > 0 {
			du.ActiveCount++
		} else {
			du.Reclaimable += i.Size - max(i.SharedSize, 0)
		}
	}
	return du, nil
}

// timeNow is when images made here were created, without a monotonic part.
func timeNow() time.Time { return time.Now().UTC().Round(0) }
