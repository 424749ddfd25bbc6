// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"net/http"

	"github.com/moby/moby/api/types/volume"

	"holdfast/internal/api/wire"
	"holdfast/internal/filter"
)

type handlers struct{ backend Backend }

// Routes returns the operations of this package.
func Routes(b Backend) []wire.Route {
	h := &handlers{b}
	return []wire.Route{
		{Method: "GET", Path: "/volumes", Handle: h.list},
		{Method: "POST", Path: "/volumes/create", Handle: h.create},
		{Method: "POST", Path: "/volumes/prune", Handle: h.prune},
		{Method: "GET", Path: "/volumes/{name}", Handle: h.inspect},
		{Method: "DELETE", Path: "/volumes/{name}", Handle: h.remove},
	}
}

func (h *handlers) list(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters()
	if err != nil {
		return err
	}
	l, err := h.backend.VolumeList(r.Context(), f)
	if err != nil {
		return err
	}
	l.Volumes = wire.NonNil(l.Volumes)
	return wire.WriteJSON(w, http.StatusOK, l)
}

func (h *handlers) create(w http.ResponseWriter, r *wire.Request) error {
	var req volume.CreateRequest
	if ok, err := r.Decode(w, &req); err != nil {
		return err
	} else if !ok {
		return wire.Invalid("invalid JSON: got EOF while reading request body")
	}
	if r.Version.Before(42) {
		req.ClusterVolumeSpec = nil
	}
	v, err := h.backend.VolumeCreate(r.Context(), req)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusCreated, v)
}

func (h *handlers) inspect(w http.ResponseWriter, r *wire.Request) error {
	v, err := h.backend.VolumeInspect(r.Context(), r.Name())
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, v)
}

func (h *handlers) remove(w http.ResponseWriter, r *wire.Request) error {
	if err := h.backend.VolumeRemove(r.Context(), r.Name(), r.Bool("force")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *handlers) prune(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters()
	if err != nil {
		return err
	}
	if r.Version.Before(42) {
		// Before 1.42 named volumes were pruned too.
		all := filter.Args{"all": {"true"}}
		for term, values := range f {
			all[term] = values
		}
		f = all
	}
	report, err := h.backend.VolumesPrune(r.Context(), f)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, report)
}
