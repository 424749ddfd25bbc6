package daemon

import (
	"context"
	"net/http"
	"time"

	"holdfast/internal/api/wire"
)

// Upgrader puts another daemon in this one's place.
type Upgrader interface {
	// Upgrade starts a daemon and hands over to it. It answers when that one
	// serves. On an error this one goes on serving.
	Upgrade(ctx context.Context, o UpgradeOptions) (Upgraded, error)
}

// UpgradeOptions are the body of POST /holdfast/v1/upgrade; all may be left out.
type UpgradeOptions struct {
	// Binary is the absolute path of the holdfastd to start; empty is where the
	// running one was started from.
	Binary string `json:"binary,omitempty"`
	// Wait is how long requests under way, such as pulls, are waited for, in
	// seconds; 0 is 30.
	Wait int `json:"wait,omitempty"`
}

// Upgraded is its answer.
type Upgraded struct {
	Pid     int    `json:"pid"` // of the new daemon
	Version string `json:"version"`
	Before  string `json:"before"` // version of the one that has left
	// Pause is how long requests were held back, in nanoseconds.
	Pause time.Duration `json:"pause"`
}

func (h *handlers) upgrade(w http.ResponseWriter, r *wire.Request) error {
	var o UpgradeOptions
	if _, err := r.Decode(w, &o); err != nil {
		return err
	}
	u, err := h.upgrader.Upgrade(r.Context(), o)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, u)
}
