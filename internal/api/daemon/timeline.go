// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/http"
	"time"

	"holdfast/internal/api/wire"
)

// timeline answers GET /holdfast/v1/timeline. Its parameter since is a time in
// RFC 3339. Without it the answer begins with the first record.
func (h *handlers) timeline(w http.ResponseWriter, r *wire.Request) error {
	var since time.Time
	if s := r.URL.Query().Get("since"); s != "" {
		var err error
		if since, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return wire.Invalid("invalid since %q: want a time such as 2030-12-31T23:59:59Z", s)
		}
	}
	t, err := h.backend.DaemonTimeline(r.Context(), since)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, t)
}
