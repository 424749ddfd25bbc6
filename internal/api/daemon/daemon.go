// Package daemon serves what is Holdfast's own beside the Docker Engine API:
// the daemon's lives and its shims. It may not keep state.
package daemon

import (
	"context"
	"net/http"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// Backend is what this package needs of the engine.
type Backend interface {
	DaemonStatus(ctx context.Context) (engine.Status, error)
}

type handlers struct{ backend Backend }

// Routes are the operations of this package.
func Routes(b Backend) []wire.Route {
	h := &handlers{b}
	return []wire.Route{{Method: "GET", Path: "/holdfast/v1/status", Handle: h.status}}
}

func (h *handlers) status(w http.ResponseWriter, r *wire.Request) error {
	s, err := h.backend.DaemonStatus(r.Context())
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, s)
}
