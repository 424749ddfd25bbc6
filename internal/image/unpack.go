// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// newUnpacker unpacks layers in order while later ones are still being
// downloaded. Layers are not unpacked in parallel: a layer that has a file but
// not its directory takes the directory's owner and mode from the layer below,
// which must be unpacked by then.
func (ly *layers) newUnpacker(ctx context.Context, storage string, p *progress, opts ...unpack.UnpackerOpt) (*unpack.Unpacker, error) {
	sn, err := ly.snapshotter(storage)
	if err != nil {
		return nil, err
	}
	return unpack.NewUnpacker(ctx, ly.contents.content, append([]unpack.UnpackerOpt{
		unpack.WithUnpackPlatform(unpack.Platform{
			SnapshotterKey: storage,
			Snapshotter:    sn,
			Applier:        applier{ly.contents.content, p},
		}),
		unpack.WithDuplicationSuppressor(&ly.blobs),
	}, opts...)...)
}

// layerError marks a failure to unpack, whose usual cause is a bad archive.
type layerError struct{ cause error }

func (e *layerError) Error() string { return e.cause.Error() }
func (e *layerError) Unwrap() error { return e.cause }

// unpackManifest unpacks a manifest whose content is in the store.
func (ly *layers) unpackManifest(ctx context.Context, manifest digest.Digest, storage string) error {
	info, err := ly.contents.content.Info(ctx, manifest)
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: manifest, Size: info.Size}
	return ly.leasing.withLease(ctx, func(ctx context.Context) error {
		return ly.unpackHere(ctx, desc, storage, newProgress(nil))
	})
}

// unpackHere unpacks desc, a manifest whose content is in the store, and labels
// it so that the collector knows which blobs it needs. The context has a lease.
func (ly *layers) unpackHere(ctx context.Context, desc ocispec.Descriptor, storage string, p *progress) error {
	unpacker, err := ly.newUnpacker(ctx, storage, p)
	if err != nil {
		return err
	}
	handler := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if _, err := ly.contents.content.Info(ctx, desc.Digest); err != nil {
			return nil, err
		}
		return ly.contents.label(ctx, desc)
	})
	err = images.Dispatch(ctx, unpacker.Unpack(handler), nil, desc)
	if _, werr := unpacker.Wait(); werr != nil && err == nil {
		err = werr
	}
	return unpackError(err)
}

// label returns the children of desc, and sets on desc the labels that keep the
// children from collection.
func (ct *contents) label(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	return images.SetChildrenMappedLabels(ct.content, images.ChildrenHandler(ct.content), images.ChildGCLabels)(ctx, desc)
}

// unpackError gives an unpacking error the kind of its cause: bad input, or a
// host that lacks the resources.
func unpackError(err error) error {
	if err != nil && strings.Contains(err.Error(), "wrong diff id") { // matched by the unpacker's message, as the error has no kind
		return &kinded{fmt.Sprintf("failed to register layer: it is not the one that the image's config names: %s", err), errdefs.ErrDataLoss, err}
	}
	var layer *layerError
	if !errors.As(err, &layer) || isHostError(err) {
		return err
	}
	return &kinded{fmt.Sprintf("failed to register layer: %s", layer), errdefs.ErrInvalidArgument, err}
}

// labelTree sets the collector's labels on all stored documents below target.
func (ct *contents) labelTree(ctx context.Context, target ocispec.Descriptor) error {
	return ct.walk(ctx, target, func(desc ocispec.Descriptor, doc *document) error {
		if doc == nil {
			return nil
		}
		_, err := ct.label(ctx, desc)
		return err
	})
}
