// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net/http"

	"holdfast/internal/api/wire"
	"holdfast/internal/config"
)

// Reloader reloads the daemon's configuration.
type Reloader interface {
	// PlanReload returns the effect that a reload would have on each changed
	// key, and changes nothing. An error that wraps errdefs.ErrInvalidArgument
	// is about the file.
	PlanReload(ctx context.Context) (Plan, error)
	// Reload applies the changes that a reload can apply, and returns the same
	// plan. On an error nothing was changed.
	Reload(ctx context.Context) (Plan, error)
}

// Plan is the answer of /holdfast/v1/reload.
type Plan struct {
	File    string           `json:"file"`    // the file that was read
	Changes []config.Planned `json:"changes"` // by key
	// Error is why both a reload and a start would refuse the file although it
	// can be parsed: one of its options can't be used.
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
