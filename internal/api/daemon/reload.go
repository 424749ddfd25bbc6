package daemon

import (
	"context"
	"net/http"

	"holdfast/internal/api/wire"
	"holdfast/internal/config"
)

// Reloader reads the daemon's configuration again.
type Reloader interface {
	// PlanReload says what would become of each changed key. It changes
	// nothing. An error that wraps errdefs.ErrInvalidArgument is the file's.
	PlanReload(ctx context.Context) (Plan, error)
	// Reload takes what a reload may take, and says the same. On an error
	// nothing was changed.
	Reload(ctx context.Context) (Plan, error)
}

// Plan is the answer of /holdfast/v1/reload.
type Plan struct {
	File    string           `json:"file"`    // that was read
	Changes []config.Planned `json:"changes"` // by key
	// Error says why neither a reload nor a start takes the file at all, though
	// it can be read: an option in it can't be used.
	Error string `json:"error,omitempty"`
}

func (h *handlers) planReload(w http.ResponseWriter, r *wire.Request) error {
	return answerPlan(w, r, h.reloader.PlanReload)
}

func (h *handlers) reload(w http.ResponseWriter, r *wire.Request) error {
	return answerPlan(w, r, h.reloader.Reload)
}

func answerPlan(w http.ResponseWriter, r *wire.Request, ask func(context.Context) (Plan, error)) error {
	p, err := ask(r.Context())
	if err != nil {
		return err
	}
	p.Changes = wire.NonNil(p.Changes)
	return wire.WriteJSON(w, http.StatusOK, p)
}
