// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/http"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/api/wire"
)

type handlers struct{ backend Backend }

// Routes returns the operations of this package.
func Routes(b Backend) []wire.Route {
	h := &handlers{b}
	return []wire.Route{
		{Method: "GET", Path: "/networks", Handle: h.list},
		{Method: "GET", Path: "/networks/", Handle: h.list},
		{Method: "POST", Path: "/networks/create", Handle: h.create},
		{Method: "POST", Path: "/networks/prune", Handle: h.prune},
		{Method: "GET", Path: "/networks/{name}", Handle: h.inspect},
		{Method: "DELETE", Path: "/networks/{name}", Handle: h.remove},
		{Method: "POST", Path: "/networks/{name}/connect", Handle: h.connect},
		{Method: "POST", Path: "/networks/{name}/disconnect", Handle: h.disconnect},
	}
}

// Before 1.28 list answered with the full form of inspect, including the
// containers.
func (h *handlers) list(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters()
	if err != nil {
		return err
	}
	all, err := h.backend.NetworkList(r.Context(), f)
	if err != nil {
		return err
	}
	if !r.Version.Before(28) {
		return wire.WriteJSON(w, http.StatusOK, wire.NonNil(all))
	}
	full := make([]network.Inspect, 0, len(all))
	for _, n := range all {
		one, err := h.backend.NetworkInspect(r.Context(), n.ID, "", false)
		if err != nil {
			return err
		}
		one.Status = nil
		full = append(full, one)
	}
	return wire.WriteJSON(w, http.StatusOK, full)
}

func (h *handlers) inspect(w http.ResponseWriter, r *wire.Request) error {
	n, err := h.backend.NetworkInspect(r.Context(), r.Name(), r.Query.Get("scope"), r.Bool("verbose"))
	if err != nil {
		return err
	}
	if r.Version.Before(52) {
		n.Status = nil
	}
	return wire.WriteJSON(w, http.StatusOK, n)
}

func (h *handlers) create(w http.ResponseWriter, r *wire.Request) error {
	var req network.CreateRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	if r.Version.Before(48) {
		req.EnableIPv4 = nil
	}
	res, err := h.backend.NetworkCreate(r.Context(), req)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusCreated, res)
}

func (h *handlers) remove(w http.ResponseWriter, r *wire.Request) error {
	if err := h.backend.NetworkRemove(r.Context(), r.Name()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *handlers) connect(w http.ResponseWriter, r *wire.Request) error {
	var req network.ConnectRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	if req.EndpointConfig != nil && r.Version.Before(54) {
		// Between 1.44 and 1.53 the field existed but was ignored.
		req.EndpointConfig.MacAddress = nil
	}
	return h.backend.NetworkConnect(r.Context(), r.Name(), req)
}

func (h *handlers) disconnect(w http.ResponseWriter, r *wire.Request) error {
	var req network.DisconnectRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	return h.backend.NetworkDisconnect(r.Context(), r.Name(), req)
}

func (h *handlers) prune(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters()
	if err != nil {
		return err
	}
	report, err := h.backend.NetworksPrune(r.Context(), f)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, report)
}

func body(w http.ResponseWriter, r *wire.Request, v any) error {
	if ok, err := r.Decode(w, v); err != nil {
		return err
	} else if !ok {
		return wire.Invalid("invalid JSON: got EOF while reading request body")
	}
	return nil
}
