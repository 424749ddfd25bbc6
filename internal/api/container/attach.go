package container

import (
	"net/http"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// attach hands the client's connection to the container's shim: once the
// backend has called Hijack, nothing of the stream passes through here.
func (h *handlers) attach(w http.ResponseWriter, r *wire.Request) error {
	hj := wire.NewHijacker(w, r)
	return h.backend.ContainerAttach(r.Context(), r.Name(), engine.AttachOptions{
		Stdin:      r.Bool("stdin"),
		Stdout:     r.Bool("stdout"),
		Stderr:     r.Bool("stderr"),
		Stream:     r.Bool("stream"),
		Logs:       r.Bool("logs"),
		DetachKeys: r.Query.Get("detachKeys"),
		Hijack:     hj.Hijack,
	})
}
