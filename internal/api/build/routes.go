// SPDX-License-Identifier: Apache-2.0

// Package build serves the operations of image builds by passing the client's
// connection to the process that builds.
package build

import (
	"context"
	"net/http"

	"github.com/moby/moby/api/types/build"

	"holdfast/internal/api/wire"
	"holdfast/internal/beside"
)

// Backend is what this package needs of package build.
type Backend interface {
	// Ready makes sure that a client can be passed. Errors: ErrNotImplemented if
	// this installation can't build, ErrUnavailable.
	Ready(ctx context.Context) error
	// Give passes a client to the process that builds, with the headers of every
	// answer. The caller keeps its own descriptor.
	Give(ctx context.Context, client beside.Client, headers map[string][]string) error
	// Used reports whether anything was ever built.
	Used() bool
}

type handlers struct{ backend Backend }

// Routes returns the operations of this package. b may be nil: nothing can be built.
func Routes(b Backend) []wire.Route {
	h := handlers{b}
	return []wire.Route{
		{Method: "POST", Path: "/grpc", Handle: h.move},
		{Method: "POST", Path: "/session", Handle: h.move},
		{Method: "POST", Path: "/build", Handle: h.move},
		{Method: "POST", Path: "/build/cancel", Handle: h.move},
		{Method: "POST", Path: "/build/prune", Handle: h.prune},
	}
}

// move passes the request as it is.
func (h handlers) move(w http.ResponseWriter, r *wire.Request) error {
	if h.backend == nil {
		return wire.Unavailable("building images")
	}
	if err := h.backend.Ready(r.Context()); err != nil {
		return err
	}
	return wire.MoveTo(w, r, h.backend.Give)
}

// prune starts no process if there is nothing to remove.
func (h handlers) prune(w http.ResponseWriter, r *wire.Request) error {
	if h.backend == nil || !h.backend.Used() {
		return wire.WriteJSON(w, http.StatusOK, build.CachePruneReport{CachesDeleted: []string{}})
	}
	return h.move(w, r)
}
