// SPDX-License-Identifier: Apache-2.0

package container

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

func (h *handlers) execCreate(w http.ResponseWriter, r *wire.Request) error {
	var req container.ExecCreateRequest
	if ok, err := r.Decode(w, &req); err != nil {
		return err
	} else if !ok {
		return wire.Invalid("invalid JSON: got EOF while reading request body")
	}
	if len(req.Cmd) == 0 {
		return wire.Invalid("No exec command specified")
	}
	if r.Version.Before(42) {
		req.ConsoleSize = nil
	}
	if r.Version.Before(35) {
		req.WorkingDir = ""
	}
	if r.Version.Before(25) {
		req.Env = nil
	}
	id, err := h.backend.ExecCreate(r.Context(), r.Name(), req)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

// execStart runs the command. Unless it is detached, the client's connection is
// handed over to the container's shim.
func (h *handlers) execStart(w http.ResponseWriter, r *wire.Request) error {
	var req container.ExecStartRequest
	if _, err := r.Decode(w, &req); err != nil {
		return err
	}
	if r.Version.Before(42) || !req.Tty {
		req.ConsoleSize = nil
	}
	o := engine.ExecStartOptions{Detach: req.Detach, Tty: req.Tty, ConsoleSize: req.ConsoleSize}
	if !req.Detach {
		o.Hijack = hijack(wire.NewHijacker(w, r))
	}
	return h.backend.ExecStart(r.Context(), r.Name(), o)
}

func (h *handlers) execResize(w http.ResponseWriter, r *wire.Request) error {
	height, width, err := r.Size()
	if err != nil {
		return err
	}
	return h.backend.ExecResize(r.Context(), r.Name(), height, width)
}

func (h *handlers) execInspect(w http.ResponseWriter, r *wire.Request) error {
	e, err := h.backend.ExecInspect(r.Context(), r.Name())
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, e)
}
