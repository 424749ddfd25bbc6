// SPDX-License-Identifier: Apache-2.0

package container

import (
	"net/http"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// attach hands the client's connection over to the container's shim. Once the
// backend has called Hijack, no data of the stream passes through this process.
func (h *handlers) attach(w http.ResponseWriter, r *wire.Request) error {
	hj := wire.NewHijacker(w, r)
	return h.backend.ContainerAttach(r.Context(), r.Name(), engine.AttachOptions{
		Stdin:      r.Bool("stdin"),
		Stdout:     r.Bool("stdout"),
		Stderr:     r.Bool("stderr"),
		Stream:     r.Bool("stream"),
		Logs:       r.Bool("logs"),
		DetachKeys: r.Query.Get("detachKeys"),
		Hijack:     hijack(hj),
	})
}
