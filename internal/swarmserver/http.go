// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/api/wire"
	"holdfast/internal/beside"
	"holdfast/internal/swarm"
)

// handler answers one operation. What it returns is encoded as JSON, or nothing for
// nil.
type handler func(r *wire.Request, w http.ResponseWriter) (any, error)

// routes returns the operations of swarm mode. A test compares them with those that
// the daemon passes.
func (s *server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	for pattern, h := range s.operations() {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, h) })
	}
	m := &onManagers{s}
	for pattern, h := range map[string]handler{
		"GET /networks": m.listNetworks, "POST /networks/create": m.createNetwork, "POST /networks/prune": m.pruneNetworks,
		"GET /networks/{name}": m.inspectNetwork, "DELETE /networks/{name}": m.removeNetwork,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, h) })
	}
	mux.HandleFunc("POST "+swarm.AttachPath, func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(r *wire.Request, w http.ResponseWriter) (any, error) {
			req, err := decode[swarm.AttachRequest](r, w)
			if err != nil {
				return nil, err
			}
			place, err := s.executor.Attach(r.Context(), req)
			return place, err
		})
	})
	mux.HandleFunc("GET "+swarm.InspectPath+"{name}", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(r *wire.Request, _ http.ResponseWriter) (any, error) {
			peers, services := s.mesh.Inspect(r.Name())
			return swarm.Mesh{Peers: peers, Services: services}, nil
		})
	})
	mux.HandleFunc("GET "+swarm.InfoPath, func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(r *wire.Request, _ http.ResponseWriter) (any, error) { return s.info(r.Context()), nil })
	})
	return mux
}

// onManagers are the operations on objects of the cluster, which managers serve.
type onManagers struct{ *server }

func (s *server) operations() map[string]handler {
	m := &onManagers{s}
	return map[string]handler{
		"GET /swarm": s.inspect, "POST /swarm/init": s.init, "POST /swarm/join": s.join, "POST /swarm/leave": s.leave,
		"POST /swarm/update": s.update, "GET /swarm/unlockkey": s.unlockKey, "POST /swarm/unlock": s.unlock,
		"GET /nodes": m.listNodes, "GET /nodes/{name}": m.inspectNode, "POST /nodes/{name}/update": m.updateNode, "DELETE /nodes/{name}": m.removeNode,
		"GET /services": m.listServices, "POST /services/create": m.createService, "GET /services/{name}": m.inspectService,
		"POST /services/{name}/update": m.updateService, "DELETE /services/{name}": m.removeService, "GET /services/{name}/logs": m.serviceLogs,
		"GET /tasks": m.listTasks, "GET /tasks/{name}": m.inspectTask, "GET /tasks/{name}/logs": m.taskLogs,
		"GET /secrets": m.listSecrets, "POST /secrets/create": m.createSecret, "GET /secrets/{name}": m.inspectSecret,
		"POST /secrets/{name}/update": m.updateSecret, "DELETE /secrets/{name}": m.removeSecret,
		"GET /configs": m.listConfigs, "POST /configs/create": m.createConfig, "GET /configs/{name}": m.inspectConfig,
		"POST /configs/{name}/update": m.updateConfig, "DELETE /configs/{name}": m.removeConfig,
	}
}

var versioned = regexp.MustCompile(`^/+v([0-9.]+)(/.*)$`)

// versionKey is the context's key of the request's API version.
type versionKey struct{}

// ServeHTTP answers the request of a client that a daemon has passed. The daemon has
// checked the request's version and the client's rights.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	beside.SetHeaders(w, r)
	version := wire.Version{Major: 1, Minor: 1 << 20} // without one, the newest
	if m := versioned.FindStringSubmatch(r.URL.Path); m != nil {
		if v, err := wire.ParseVersion(m[1]); err == nil {
			version = v
		}
		r.URL.Path, r.URL.RawPath = m[2], ""
	}
	s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), versionKey{}, version)))
}

func (s *server) answer(w http.ResponseWriter, r *http.Request, h handler) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		wire.WriteError(w, wire.Invalid("invalid query string: %w", err))
		return
	}
	version, _ := r.Context().Value(versionKey{}).(wire.Version)
	req := &wire.Request{Request: r, Version: version, Query: query, Log: slog.Default(), Vars: map[string]string{"name": r.PathValue("name")}}
	result, err := h(req, w)
	switch {
	case err != nil:
		wire.WriteError(w, answered(err))
	case result == nil:
		w.WriteHeader(http.StatusOK)
	case result == streamed:
	default:
		code := http.StatusOK
		if strings.HasSuffix(r.URL.Path, "/create") {
			code = http.StatusCreated
		}
		_ = wire.WriteJSON(w, code, result)
	}
}

// streamed is the result of a handler that has answered itself.
var streamed = new(struct{ _ int })

// decode reads the body of a request.
func decode[T any](r *wire.Request, w http.ResponseWriter) (v T, err error) {
	_, err = r.Decode(w, &v)
	return v, err
}

// objectVersion is the version of the object that a client has changed.
func objectVersion(r *wire.Request, what string) (uint64, error) {
	text := r.Query.Get("version")
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, wire.Invalid("invalid %s version '%s': %w", what, text, err)
	}
	return n, nil
}

// requestTimeout bounds a request to the manager, as in Docker.
const requestTimeout = 20 * time.Second

// onManager calls fn with the manager's API, or says why this node has none.
func (s *server) onManager(r *wire.Request, fn func(ctx context.Context, v view) (any, error)) (any, error) {
	v, in := s.view()
	if v.control == nil {
		return nil, noManager(v, in)
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	return fn(ctx, v)
}
