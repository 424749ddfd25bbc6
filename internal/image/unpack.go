package image

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// newUnpacker unpacks layers in their order while later ones are still being
// fetched. Layers are not unpacked side by side: a layer that names a file but
// not its directory takes the directory's owner and mode from the layer below,
// which must be there.
func (s *Store) newUnpacker(ctx context.Context, storage string, p *progress, opts ...unpack.UnpackerOpt) (*unpack.Unpacker, error) {
	sn, err := s.snapshotter(storage)
	if err != nil {
		return nil, err
	}
	return unpack.NewUnpacker(ctx, s.content, append([]unpack.UnpackerOpt{
		unpack.WithUnpackPlatform(unpack.Platform{
			SnapshotterKey: storage,
			Snapshotter:    sn,
			Applier:        applier{apply.NewFileSystemApplier(s.content), p},
		}),
		unpack.WithDuplicationSuppressor(&s.blobs),
	}, opts...)...)
}

// applier unpacks one layer and tells how it goes.
type applier struct {
	diff.Applier
	progress *progress
}

func (a applier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	id := shortID(desc.Digest)
	opts = append(opts, func(_ context.Context, _ ocispec.Descriptor, c *diff.ApplyConfig) error {
		c.Progress = func(n int64) { a.progress.bytes(id, "Extracting", n, desc.Size) }
		return nil
	})
	d, err := a.Applier.Apply(ctx, desc, mounts, opts...)
	if err != nil {
		return d, &layerError{err}
	}
	a.progress.status(id, "Pull complete")
	return d, nil
}

// layerError marks a failure to unpack, whose usual cause is a bad archive.
type layerError struct{ cause error }

func (e *layerError) Error() string { return e.cause.Error() }
func (e *layerError) Unwrap() error { return e.cause }

// unpackManifest unpacks a manifest whose content is here.
func (s *Store) unpackManifest(ctx context.Context, manifest digest.Digest, storage string) error {
	info, err := s.content.Info(ctx, manifest)
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: manifest, Size: info.Size}
	return s.withLease(ctx, func(ctx context.Context) error {
		return s.unpackHere(ctx, desc, storage, newProgress(nil))
	})
}

// unpackHere unpacks desc, a manifest whose content is in the store, and labels
// it so that the collector sees what belongs to it. The context has a lease.
func (s *Store) unpackHere(ctx context.Context, desc ocispec.Descriptor, storage string, p *progress) error {
	unpacker, err := s.newUnpacker(ctx, storage, p)
	if err != nil {
		return err
	}
	handler := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if _, err := s.content.Info(ctx, desc.Digest); err != nil {
			return nil, err
		}
		return s.label(ctx, desc)
	})
	err = images.Dispatch(ctx, unpacker.Unpack(handler), nil, desc)
	if _, werr := unpacker.Wait(); werr != nil && err == nil {
		err = werr
	}
	return unpackError(err)
}

// label returns the children of desc and writes onto desc the labels that keep
// them from the collector.
func (s *Store) label(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	return images.SetChildrenMappedLabels(s.content, images.ChildrenHandler(s.content), images.ChildGCLabels)(ctx, desc)
}

// unpackError gives a failed unpacking the kind of its cause: bad input, or a
// host that can't take it.
func unpackError(err error) error {
	if err != nil && strings.Contains(err.Error(), "wrong diff id") { // the unpacker's words; it has no kind for it
		return &kinded{fmt.Sprintf("failed to register layer: it is not the one that the image's config names: %s", err), errdefs.ErrDataLoss, err}
	}
	var layer *layerError
	if !errors.As(err, &layer) || isHostError(err) {
		return err
	}
	return &kinded{fmt.Sprintf("failed to register layer: %s", layer), errdefs.ErrInvalidArgument, err}
}

// labelTree writes the collector's labels below target for what is here.
func (s *Store) labelTree(ctx context.Context, target ocispec.Descriptor) error {
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if here, err := content.Exists(ctx, s.content, desc); err != nil || !here {
			return nil, err
		}
		return s.label(ctx, desc)
	}), target)
}
