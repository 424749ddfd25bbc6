// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func formatTime(t time.Time) string { return t.Format(time.RFC3339Nano) }

// chainIDs returns the snapshot keys of a variant's layers, lowest first.
func (v variant) chainIDs() []digest.Digest {
	if v.config == nil {
		return nil
	}
	return identity.ChainIDs(append([]digest.Digest(nil), v.config.RootFS.DiffIDs...))
}

// layerSizes returns the sizes in bytes of a variant's unpacked layers, lowest
// first. A native snapshot contains its parents, so its size is the difference
// to its parent.
func (ly *layers) layerSizes(ctx context.Context, v variant) ([]int64, error) {
	sn, err := ly.snapshotter(ly.driver)
	if err != nil {
		return nil, err
	}
	names, err := layerNames(ctx, sn, v.chainIDs())
	if err != nil {
		return nil, err
	}
	var sizes []int64
	var below int64
	for _, name := range names {
		u, err := sn.Usage(ctx, name)
		if err != nil {
			return sizes, err
		}
		if ly.driver == Native {
			sizes = append(sizes, max(0, u.Size-below))
			below = u.Size
		} else {
			sizes = append(sizes, u.Size)
		}
	}
	return sizes, nil
}

// layerNames returns the snapshots of layers with chain IDs, lowest first. Those below the
// uppermost one are its parents. They need not be found by their chain IDs: of two builds
// that have made the same layer, the snapshot of one has the chain ID's name, and is removed
// with that build.
func layerNames(ctx context.Context, sn snapshots.Snapshotter, chains []digest.Digest) ([]string, error) {
	names := make([]string, len(chains))
	for n, chain := range chains {
		names[n] = chain.String()
	}
	for n := len(names) - 1; n > 0; n-- {
		info, err := sn.Stat(ctx, names[n])
		if errdefs.IsNotFound(err) {
			return names, nil // it is not unpacked
		}
		if err != nil {
			return nil, err
		}
		if info.Parent == "" {
			return names, nil
		}
		names[n-1] = info.Parent
	}
	return names, nil
}

func (ly *layers) unpackedSize(ctx context.Context, v variant) (int64, error) {
	sizes, err := ly.layerSizes(ctx, v)
	var sum int64
	for _, n := range sizes {
		sum += n
	}
	return sum, err
}

// blobsOf calls fn once for each blob that target needs and that is in the
// store. For a damaged target these are the blobs found before the damage.
func (ct *contents) blobsOf(ctx context.Context, target ocispec.Descriptor, fn func(digest.Digest, int64)) error {
	seen := map[digest.Digest]bool{}
	add := func(desc ocispec.Descriptor) error {
		if seen[desc.Digest] || desc.Digest.Validate() != nil {
			return nil
		}
		seen[desc.Digest] = true
		info, err := ct.content.Info(ctx, desc.Digest)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		fn(desc.Digest, info.Size)
		return nil
	}
	if err := add(target); err != nil {
		return err
	}
	return ct.walk(ctx, target, func(desc ocispec.Descriptor, doc *document) error {
		if doc == nil {
			return nil
		}
		below := []ocispec.Descriptor{desc}
		if doc.index != nil {
			below = append(below, doc.index.Manifests...)
		} else {
			below = append(append(below, doc.manifest.Config), doc.manifest.Layers...)
		}
		for _, d := range below {
			if err := add(d); err != nil {
				return err
			}
		}
		return nil
	})
}

// contentSize sums the sizes of a target's stored blobs, in bytes.
func (ct *contents) contentSize(ctx context.Context, target ocispec.Descriptor) (int64, error) {
	var sum int64
	err := ct.blobsOf(ctx, target, func(_ digest.Digest, n int64) { sum += n })
	return sum, err
}

// diskUsage sums the store's blobs and unpacked layers, in bytes.
func (ly *layers) diskUsage(ctx context.Context) (int64, error) {
	var sum int64
	err := ly.contents.content.Walk(ctx, func(i content.Info) error {
		sum += i.Size
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, sn := range ly.contents.db.Snapshotters() {
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
