// Package system serves the operations on the daemon as a whole: _ping,
// version, info, events, auth and system/df. It may not keep state.
package system

import (
	"context"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	"holdfast/internal/engine"
)

// Backend is what this package needs of the engine. Errors carry a kind
// (containerd/errdefs).
type Backend interface {
	Info(ctx context.Context) (system.Info, error)
	Version(ctx context.Context) (system.VersionResponse, error)
	// Events sends what was, from Since on, then what comes, to send, until
	// Until, the context's end or an error of send.
	Events(ctx context.Context, o engine.EventsOptions, send func(events.Message) error) error
	DiskUsage(ctx context.Context, o engine.DiskUsageOptions) (system.DiskUsage, error)
	// Auth tries the credentials at the registry that they name.
	Auth(ctx context.Context, c registry.AuthConfig) (registry.AuthResponse, error)
}
