// SPDX-License-Identifier: Apache-2.0

// Package system serves the operations on the daemon as a whole: _ping,
// version, info, events, auth and system/df. It may not keep state.
package system

import (
	"context"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"holdfast/internal/engine"
	"holdfast/internal/engine/sysinfo"
	"holdfast/internal/event"
)

// Backend is what this package needs of the engine. Errors carry a kind
// (containerd/errdefs).
type Backend interface {
	Info(ctx context.Context) (system.Info, error)
	Version(ctx context.Context) (system.VersionResponse, error)
	// Events calls send with past events from Since on, then with new ones,
	// until Until is reached, the context ends or send fails.
	Events(ctx context.Context, o engine.EventsOptions, send func(event.Message) error) error
	// GiveEvents hands a client over to a process that serves it even if this
	// process ends. It returns false, with nothing done, if Events must be
	// used.
	GiveEvents(o engine.GiveEventsOptions) (bool, error)
	DiskUsage(ctx context.Context, o sysinfo.DiskUsageOptions) (system.DiskUsage, error)
	// Auth checks the credentials at the registry that they name.
	Auth(ctx context.Context, c registry.AuthConfig) (registry.AuthResponse, error)
}

// Swarm is what this package needs of package swarm.
type Swarm interface {
	// Info is the swarm section of info.
	Info(ctx context.Context) swarm.Info
	// Header is the header Swarm of _ping. It must not block.
	Header() string
}
