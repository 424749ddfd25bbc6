// SPDX-License-Identifier: Apache-2.0

package system

import (
	"io"
	"net/http"
	"strconv"

	"github.com/moby/moby/api/types/registry"

	"holdfast/internal/api/wire"
)

// Facts are what the API itself knows about the system.
type Facts struct {
	Version, MinVersion wire.Version
	BuilderVersion      string
	Swarm               Swarm // nil: there is no swarm mode
}

func (f Facts) swarmHeader() string {
	if f.Swarm == nil {
		return "inactive"
	}
	return f.Swarm.Header()
}

type handlers struct {
	backend Backend
	facts   Facts
}

// Routes returns the operations of this package.
func Routes(b Backend, f Facts) []wire.Route {
	h := &handlers{b, f}
	return []wire.Route{
		{Method: "GET", Path: "/_ping", Handle: h.ping},
		{Method: "HEAD", Path: "/_ping", Handle: h.ping},
		{Method: "GET", Path: "/version", Handle: h.version},
		{Method: "GET", Path: "/info", Handle: h.info},
		{Method: "GET", Path: "/events", Handle: h.events},
		{Method: "GET", Path: "/system/df", Handle: h.diskUsage},
		{Method: "POST", Path: "/auth", Handle: h.auth},
	}
}

// ping answers without calling the engine, because it must work while the
// engine is restoring.
func (h *handlers) ping(w http.ResponseWriter, r *wire.Request) error {
	const body = "OK"
	header := w.Header()
	header.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	header.Set("Pragma", "no-cache")
	header.Set("Builder-Version", h.facts.BuilderVersion)
	header.Set("Swarm", h.facts.swarmHeader())
	header.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		header.Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = io.WriteString(w, body)
	return nil
}

// version sets the fields that the API knows better than the engine.
func (h *handlers) version(w http.ResponseWriter, r *wire.Request) error {
	v, err := h.backend.Version(r.Context())
	if err != nil {
		return err
	}
	v.APIVersion, v.MinAPIVersion = h.facts.Version.String(), h.facts.MinVersion.String()
	for i := range v.Components {
		if d := v.Components[i].Details; v.Components[i].Name == "Engine" && d != nil {
			d["ApiVersion"], d["MinAPIVersion"] = v.APIVersion, v.MinAPIVersion
		}
	}
	return wire.WriteJSON(w, http.StatusOK, v)
}

func (h *handlers) auth(w http.ResponseWriter, r *wire.Request) error {
	var c registry.AuthConfig
	if ok, err := r.Decode(w, &c); err != nil {
		return err
	} else if !ok {
		return wire.Invalid("missing request body: want the credentials as a JSON object")
	}
	status, err := h.backend.Auth(r.Context(), c)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, status)
}
