// SPDX-License-Identifier: Apache-2.0

// Package daemon serves Holdfast's own additions to the Docker Engine API: the
// timeline of the daemon's lives, its shims, the reload of its configuration
// and its upgrade. It may not keep state.
package daemon

import (
	"context"
	"net/http"
	"time"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine/sysinfo"
	"holdfast/internal/timeline"
)

// Backend is what this package needs of the engine.
type Backend interface {
	DaemonStatus(ctx context.Context) (sysinfo.Status, error)
	// DaemonTimeline returns the timeline from since to now. A zero since means
	// from the first record.
	DaemonTimeline(ctx context.Context, since time.Time) (timeline.Timeline, error)
}

type handlers struct {
	backend  Backend
	reloader Reloader
	upgrader Upgrader
}

// Routes returns the operations of this package. Without a Reloader the
// operations that reload the configuration are missing, without an Upgrader the
// operation that upgrades the daemon.
func Routes(b Backend, r Reloader, u Upgrader) []wire.Route {
	h := &handlers{b, r, u}
	routes := []wire.Route{
		{Method: "GET", Path: "/holdfast/v1/status", Handle: h.status},
		{Method: "GET", Path: "/holdfast/v1/timeline", Handle: h.timeline},
	}
	if _, ok := b.(ShimUpgrader); ok {
		routes = append(routes, wire.Route{Method: "POST", Path: "/holdfast/v1/shims/upgrade", Handle: h.upgradeShims})
	}
	if r != nil {
		routes = append(routes,
			wire.Route{Method: "GET", Path: "/holdfast/v1/reload", Handle: h.planReload},
			wire.Route{Method: "POST", Path: "/holdfast/v1/reload", Handle: h.reload})
	}
	if u != nil {
		routes = append(routes, wire.Route{Method: "POST", Path: "/holdfast/v1/upgrade", Handle: h.upgrade})
	}
	return routes
}

func (h *handlers) status(w http.ResponseWriter, r *wire.Request) error {
	s, err := h.backend.DaemonStatus(r.Context())
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, s)
}
