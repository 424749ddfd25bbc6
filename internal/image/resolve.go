package image

import (
	"context"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is what a container is made of: one manifest of an image.
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

// Means tells whether what a user called an image means the one with an ID at
// this moment: a name may have been taken away, or given to another image. One
// reading of the records serves all questions.
func (s *Store) Means(ctx context.Context) (func(ref, id string) bool, error) {
	records, err := s.images.List(s.ctx(ctx))
	if err != nil {
		return nil, err
	}
	ids := make(map[string]string, len(records))
	for _, r := range records {
		ids[r.Name] = r.Target.Digest.String()
	}
	known := map[string]string{} // by what users wrote, as many wrote the same
	return func(ref, id string) bool {
		now, ok := known[ref]
		if !ok {
			if named, err := reference.ParseNormalizedNamed(ref); err == nil {
				now = ids[reference.TagNameOnly(named).String()]
			}
			known[ref] = now
		}
		// Else an ID, or the beginning of one.
		return now == id || strings.HasSuffix(ref, "@"+id) ||
			strings.HasPrefix(id, ref) || strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), ref)
	}, nil
}

// Resolve finds the image that a name means and its manifest for a platform;
// nil is the host's platform, and whatever there is when the host's is not
// here. Errors: not found in Docker's words, invalid argument for an ambiguous
// ID.
func (s *Store) Resolve(ctx context.Context, name string, platform *ocispec.Platform) (Image, error) {
	ctx = s.ctx(ctx)
	m, err := s.find(ctx, name)
	if err != nil {
		return Image{}, err
	}
	all, err := s.variants(ctx, m.target)
	if err != nil {
		return Image{}, err
	}
	v, err := s.choose(ctx, name, all, platform)
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
		Storage:  s.driver,
		Names:    familiarNames(m.names),
	}
	if v.config.Created != nil {
		img.Created = formatTime(*v.config.Created)
	}
	for _, d := range v.config.RootFS.DiffIDs {
		img.Layers = append(img.Layers, d.String())
	}
	if img.LayerBytes, err = s.unpackedSize(ctx, v); err != nil && !errdefs.IsNotFound(err) {
		return Image{}, err
	}
	stored, err := s.contentSize(ctx, m.target)
	if err != nil {
		return Image{}, err
	}
	img.Size = stored + img.LayerBytes
	return img, nil
}
