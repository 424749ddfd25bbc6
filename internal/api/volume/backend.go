// SPDX-License-Identifier: Apache-2.0

// Package volume serves the operations on volumes. It may not keep state.
package volume

import (
	"context"

	"github.com/moby/moby/api/types/volume"

	"holdfast/internal/filter"
)

// Backend is what this package needs of the engine. Errors carry a kind
// (containerd/errdefs).
type Backend interface {
	VolumeCreate(ctx context.Context, r volume.CreateRequest) (volume.Volume, error)
	VolumeList(ctx context.Context, f filter.Args) (volume.ListResponse, error)
	VolumeInspect(ctx context.Context, name string) (volume.Volume, error)
	VolumeRemove(ctx context.Context, name string, force bool) error
	VolumesPrune(ctx context.Context, f filter.Args) (volume.PruneReport, error)
}
