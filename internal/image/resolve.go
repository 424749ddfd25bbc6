// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is what a container is made from: one manifest of an image.
type Image struct {
	Ref      string // as the user named it
	ID       string // digest of the image's target
	Manifest string // digest of the manifest for Platform
	// ManifestType and ManifestSize (bytes) complete the manifest's descriptor.
	ManifestType string
	ManifestSize int64
	Platform     ocispec.Platform
	Config       dockerspec.DockerOCIImageConfig
	Created      string   // RFC 3339, empty when unknown
	Layers       []string // digests of the unpacked layers, lowest first
	Snapshot     string   // chain ID of the top layer; empty without layers
	Storage      string   // driver that a new container's rootfs gets
	// Size is, in bytes, what inspect shows: content and unpacked layers.
	Size int64
	// LayerBytes is the size of the unpacked layers alone.
	LayerBytes int64
	Names      []string // familiar references
}

// ReferenceMatcher returns a function that reports whether a user's reference to an
// image resolves to the image with the given ID now: a name may have been removed,
// or moved to another image. The records are read once for all calls.
func (ca *catalog) ReferenceMatcher(ctx context.Context) (func(ref, id string) bool, error) {
	records, err := ca.images.List(ca.ctx(ctx))
	if err != nil {
		return nil, err
	}
	ids := make(map[string]string, len(records))
	for _, r := range records {
		ids[r.Name] = r.Target.Digest.String()
	}
	known := map[string]string{} // cache by name, as many containers name the same image
	return func(ref, id string) bool {
		now, ok := known[ref]
		if !ok {
			if named, err := reference.ParseNormalizedNamed(ref); err == nil {
				now = ids[reference.TagNameOnly(named).String()]
			}
			known[ref] = now
		}
		if now != "" {
			return now == id // a name takes precedence over an abbreviated ID
		}
		return strings.HasSuffix(ref, "@"+id) ||
			strings.HasPrefix(id, ref) || strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), ref)
	}, nil
}

// Resolve finds the image that a name refers to, and its manifest for a
// platform. nil means the host's platform, or any platform if there is none for
// the host. Errors: not found in Docker's words, invalid argument for an
// ambiguous ID.
func (ds *describer) Resolve(ctx context.Context, name string, platform *ocispec.Platform) (Image, error) {
	ctx = ds.ctx(ctx)
	m, err := ds.catalog.find(ctx, name)
	if err != nil {
		return Image{}, err
	}
	all, err := ds.contents.variants(ctx, m.target)
	if err != nil {
		return Image{}, err
	}
	v, err := ds.layers.choose(ctx, name, all, platform)
	if err != nil {
		return Image{}, err
	}
	img := Image{
		Ref:      name,
		ID:       m.id(),
		Manifest: v.desc.Digest.String(), ManifestType: v.desc.MediaType, ManifestSize: v.desc.Size,
		Platform: v.platform,
		Config:   v.config.Config,
		Snapshot: v.snapshot(),
		Storage:  ds.layers.driver,
		Names:    familiarNames(m.names),
	}
	if v.config.Created != nil {
		img.Created = formatTime(*v.config.Created)
	}
	for _, d := range v.config.RootFS.DiffIDs {
		img.Layers = append(img.Layers, d.String())
	}
	if img.LayerBytes, err = ds.layers.unpackedSize(ctx, v); err != nil && !errdefs.IsNotFound(err) {
		return Image{}, err
	}
	stored, err := ds.contents.contentSize(ctx, m.target)
	if err != nil {
		return Image{}, err
	}
	img.Size = stored + img.LayerBytes
	return img, nil
}
