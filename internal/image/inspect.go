// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Inspected is the result of Inspect. The API's type no longer has Parent, but
// Docker still sends it.
type Inspected struct {
	image.InspectResponse
	Parent string `json:",omitempty"` // ID of the image that it was committed from
}

func (ds *describer) inspect(ctx context.Context, name string, m match, platform *ocispec.Platform, users func(digest.Digest) []string) (Inspected, error) {
	var out Inspected
	d, err := ds.describe(ctx, m.entry)
	if err != nil {
		return out, err
	}
	target := d.target
	out.InspectResponse = image.InspectResponse{
		ID:          d.id(),
		RepoTags:    d.tags,
		RepoDigests: d.digests,
		Descriptor:  &target,
		Metadata:    image.Metadata{LastTagTime: d.updated},
		GraphDriver: &storage.DriverData{Name: ds.layers.driver},
	}
	v, err := ds.layers.choose(ctx, name, d.variants, platform)
	if err != nil {
		return Inspected{}, err
	}
	if out.Parent, err = ds.contents.parent(ctx, d.target.Digest); err != nil {
		return out, err
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
	if out.Size, err = ds.contents.contentSize(ctx, d.target); err != nil {
		return out, err
	}
	unpacked, err := ds.layers.unpackedSize(ctx, v)
	if err != nil && !errdefs.IsNotFound(err) {
		return out, err
	}
	out.Size += unpacked
	if out.Identity, err = ds.contents.identity(ctx, d.target); err != nil {
		return out, err
	}
	if platform == nil {
		if out.Manifests, err = ds.manifests(ctx, d, users); err != nil {
			return out, err
		}
	}
	return out, nil
}

// variantFor returns an image by its name, and its variant for a platform; nil means
// the host's. Error: not found (the image or the variant).
func (ds *describer) variantFor(ctx context.Context, name string, platform *ocispec.Platform) (described, variant, error) {
	m, err := ds.catalog.find(ctx, name)
	if err != nil {
		return described{}, variant{}, err
	}
	d, err := ds.describe(ctx, m.entry)
	if err != nil {
		return described{}, variant{}, err
	}
	v, err := ds.layers.choose(ctx, name, d.variants, platform)
	return d, v, err
}

// History lists the steps that made an image, the last step first.
func (ds *describer) History(ctx context.Context, name string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	ctx = ds.ctx(ctx)
	d, v, err := ds.variantFor(ctx, name, platform)
	if err != nil {
		return nil, err
	}
	sizes, err := ds.layers.layerSizes(ctx, v)
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
	if len(out) == 0 {
		return out, nil
	}
	all, of, err := ds.catalog.parents(ctx)
	if err != nil {
		return nil, err
	}
	// The image itself made the last step, its parent the one before, and so
	// on.
	for i, e := range append([]entry{d.entry}, ancestors(all, of, d.id())...) {
		if i == len(out) {
			break
		}
		out[i].ID = e.id()
		out[i].Tags, _ = e.tagsAndDigests()
	}
	return out, nil
}

// Tag gives the image src another name. If the name belonged to another image,
// it moves.
func (ca *catalog) Tag(ctx context.Context, src, dst string) error {
	ctx = ca.ctx(ctx)
	to, err := tagTarget(dst)
	if err != nil {
		return err
	}
	m, err := ca.find(ctx, src)
	if err != nil {
		return err
	}
	if _, err := ca.record(ctx, to.String(), m.target); err != nil {
		return err
	}
	ca.emitEvent(ctx, "tag", m.id(), familiar(to.String()), m.target)
	return nil
}

// timeNow is the creation time for images made here, without a monotonic part.
func timeNow() time.Time { return time.Now().UTC().Round(0) }
