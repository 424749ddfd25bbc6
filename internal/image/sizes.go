package image

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func formatTime(t time.Time) string { return t.Format(time.RFC3339Nano) }

// chainIDs are the snapshot keys of a variant's layers, lowest first.
func (v variant) chainIDs() []digest.Digest {
	if v.config == nil {
		return nil
	}
	return identity.ChainIDs(append([]digest.Digest(nil), v.config.RootFS.DiffIDs...))
}

// layerSizes are the sizes in bytes of a variant's unpacked layers, lowest
// first. A native snapshot contains its parents, so there the difference
// counts.
func (s *Store) layerSizes(ctx context.Context, v variant) ([]int64, error) {
	sn, err := s.snapshotter(s.driver)
	if err != nil {
		return nil, err
	}
	var sizes []int64
	var below int64
	for _, chain := range v.chainIDs() {
		u, err := sn.Usage(ctx, chain.String())
		if err != nil {
			return sizes, err
		}
		if s.driver == Native {
			sizes = append(sizes, max(0, u.Size-below))
			below = u.Size
		} else {
			sizes = append(sizes, u.Size)
		}
	}
	return sizes, nil
}

func (s *Store) unpackedSize(ctx context.Context, v variant) (int64, error) {
	sizes, err := s.layerSizes(ctx, v)
	var sum int64
	for _, n := range sizes {
		sum += n
	}
	return sum, err
}

// blobsOf calls fn once for each blob that is here and that target needs.
func (s *Store) blobsOf(ctx context.Context, target ocispec.Descriptor, fn func(digest.Digest, int64)) error {
	seen := map[digest.Digest]bool{}
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if seen[desc.Digest] {
			return nil, images.ErrSkipDesc
		}
		seen[desc.Digest] = true
		info, err := s.content.Info(ctx, desc.Digest)
		if errdefs.IsNotFound(err) {
			return nil, images.ErrSkipDesc
		}
		if err != nil {
			return nil, err
		}
		fn(desc.Digest, info.Size)
		if !images.IsIndexType(desc.MediaType) && !images.IsManifestType(desc.MediaType) {
			return nil, nil
		}
		doc, err := s.document(ctx, desc)
		if err != nil {
			return nil, err
		}
		if doc.index != nil {
			return doc.index.Manifests, nil
		}
		return append([]ocispec.Descriptor{doc.manifest.Config}, doc.manifest.Layers...), nil
	}), target)
}

func (s *Store) contentSize(ctx context.Context, target ocispec.Descriptor) (int64, error) {
	var sum int64
	err := s.blobsOf(ctx, target, func(_ digest.Digest, n int64) { sum += n })
	return sum, err
}

// diskUsage is what the store takes on disk: blobs and unpacked layers.
func (s *Store) diskUsage(ctx context.Context) (int64, error) {
	var sum int64
	err := s.content.Walk(ctx, func(i content.Info) error {
		sum += i.Size
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, sn := range s.db.Snapshotters() {
		var keys []string
		err := sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			keys = append(keys, i.Name)
			return nil
		})
		if err != nil {
			return 0, err
		}
		for _, key := range keys {
			u, err := sn.Usage(ctx, key)
			if errdefs.IsNotFound(err) {
				continue // removed meanwhile
			}
			if err != nil {
				return 0, err
			}
			sum += u.Size
		}
	}
	return sum, nil
}
