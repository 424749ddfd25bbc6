// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net/http"
	"time"

	"holdfast/internal/api/wire"
)

// Upgrader replaces this daemon by another one.
type Upgrader interface {
	// Upgrade starts a new daemon and hands over to it. It returns once the new
	// daemon serves. On an error this daemon goes on serving.
	Upgrade(ctx context.Context, o UpgradeOptions) (Upgraded, error)
}

// UpgradeOptions is the body of POST /holdfast/v1/upgrade. Every field is
// optional.
type UpgradeOptions struct {
	// Binary is the absolute path of the holdfastd to start. Empty means the
	// path from which the running one was started.
	Binary string `json:"binary,omitempty"`
	// Wait is how long to wait for running requests, such as pulls, in seconds.
	// 0 means 30.
	Wait int `json:"wait,omitempty"`
}

// Upgraded is the answer to POST /holdfast/v1/upgrade.
type Upgraded struct {
	Pid     int    `json:"pid"` // of the new daemon
	Version string `json:"version"`
	Before  string `json:"before"` // version of the old daemon
	// Pause is how long requests were held up, in nanoseconds.
	Pause time.Duration `json:"pause"`
}

func (h *handlers) upgrade(w http.ResponseWriter, r *wire.Request) error {
	var o UpgradeOptions
	if _, err := r.Decode(w, &o); err != nil {
		return err
	}
	if err := absolute(o.Binary); err != nil {
		return err
	}
	u, err := h.upgrader.Upgrade(r.Context(), o)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, u)
}
