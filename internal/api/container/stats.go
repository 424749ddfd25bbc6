// SPDX-License-Identifier: Apache-2.0

package container

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"holdfast/internal/api/wire"
)

func (h *handlers) stats(w http.ResponseWriter, r *wire.Request) error {
	stream := r.BoolOr("stream", true)
	oneShot := !r.Version.Before(41) && r.Bool("one-shot")
	if stream && oneShot {
		return wire.Invalid("cannot have stream=true and one-shot=true")
	}
	s := wire.NewStream(w, "application/json")
	return h.backend.ContainerStats(r.Context(), r.Name(), stream, oneShot, func(st container.StatsResponse) error {
		if r.Version.Before(52) {
			st.OSType = ""
		}
		return s.Send(st)
	})
}
