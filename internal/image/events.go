// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"maps"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// emitEvent emits an event of an image in the store. The event carries the image's
// labels, as Docker's does, so that clients can filter by them.
func (ca *catalog) emitEvent(ctx context.Context, action, id, name string, target ocispec.Descriptor) {
	ca.onEvent(action, id, name, ca.layers.labelsOf(ca.ctx(context.WithoutCancel(ctx)), target))
}

// labelsOf returns the labels of the manifest that a container would be made
// from, or none if it can't be read.
func (ly *layers) labelsOf(ctx context.Context, target ocispec.Descriptor) map[string]string {
	all, err := ly.contents.variants(ctx, target)
	if err != nil {
		return nil
	}
	v, err := ly.choose(ctx, target.Digest.String(), all, nil)
	if err != nil {
		return nil
	}
	return maps.Clone(v.config.Config.Labels)
}
