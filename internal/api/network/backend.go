// SPDX-License-Identifier: Apache-2.0

// Package network serves the operations on networks. It may not keep state.
package network

import (
	"context"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/filter"
)

// Backend is what this package needs of the engine. Errors carry a kind
// (containerd/errdefs).
type Backend interface {
	NetworkList(ctx context.Context, f filter.Args) ([]network.Summary, error)
	NetworkInspect(ctx context.Context, ref, scope string, verbose bool) (network.Inspect, error)
	NetworkCreate(ctx context.Context, r network.CreateRequest) (network.CreateResponse, error)
	NetworkRemove(ctx context.Context, ref string) error
	NetworkConnect(ctx context.Context, ref string, r network.ConnectRequest) error
	NetworkDisconnect(ctx context.Context, ref string, r network.DisconnectRequest) error
	NetworksPrune(ctx context.Context, f filter.Args) (network.PruneReport, error)
}
