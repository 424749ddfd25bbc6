// SPDX-License-Identifier: Apache-2.0

// Package api serves the Docker Engine API over HTTP: it negotiates the
// version, finds the route, and turns errors and panics into answers. Each kind
// of object has its own folder, which declares the Backend that it needs;
// shared code is in wire. The package owns no state and starts nothing:
// listeners, TLS and the engine belong to the caller of New. The server in
// front of it must speak HTTP/1.1 only, because attach and exec take over
// connections.
package api

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/api/build"
	"holdfast/internal/api/container"
	"holdfast/internal/api/daemon"
	"holdfast/internal/api/image"
	"holdfast/internal/api/network"
	"holdfast/internal/api/swarm"
	"holdfast/internal/api/system"
	"holdfast/internal/api/tasks"
	"holdfast/internal/api/volume"
	"holdfast/internal/api/wire"
)

const (
	// DefaultVersion is the newest API version that is served. It is the
	// version of the module github.com/moby/moby/api, which has the types.
	DefaultVersion = "1.56"
	// DefaultMinVersion is the oldest API version that is served.
	DefaultMinVersion = "1.24"
)

// Options are what New needs.
type Options struct {
	Containers container.Backend
	Images     image.Backend
	Volumes    volume.Backend
	Networks   network.Backend
	System     system.Backend
	Daemon     daemon.Backend
	Builds     build.Backend   // nil: nothing can be built
	Swarm      Swarm           // nil: there is no swarm mode
	Reload     daemon.Reloader // nil: no reload by the API
	Upgrade    daemon.Upgrader // nil: no upgrade of the daemon by the API

	Log *slog.Logger // nil discards

	// Version and MinVersion bound the API versions. Empty means DefaultVersion
	// and DefaultMinVersion.
	Version, MinVersion string
	// Server is the Server header, such as "Holdfast/0.1.0 (linux)".
	Server string
	// Experimental reports whether experimental features are on; nil means no.
	Experimental func() bool
	// BuilderVersion is the builder that clients should use: "1" for POST /build,
	// "2" for BuildKit's own API. Empty means "1": where nothing can be built, that
	// request is refused with a clear message.
	BuilderVersion string
}

// What the API may do to the daemon's process, and what it gets.
type (
	Plan           = daemon.Plan
	Reloader       = daemon.Reloader
	UpgradeOptions = daemon.UpgradeOptions
	Upgraded       = daemon.Upgraded
	Upgrader       = daemon.Upgrader
)

// ForTasks is the API for the process that runs the node of a swarm.
func ForTasks(api http.Handler, b tasks.Backend, j tasks.Journal, nets tasks.Overlays) http.Handler {
	return tasks.Handler(api, b, j, nets)
}

// Swarm is what the API needs of package swarm.
type Swarm interface {
	swarm.Backend
	system.Swarm
}

type server struct {
	routes       *router
	log          *slog.Logger
	min, max     wire.Version
	name         string
	experimental func() bool
}

// New returns the handler of the whole API. It panics on a version that can't
// be parsed, which is a programming error.
func New(o Options) http.Handler {
	s := &server{
		log:          o.Log,
		max:          wire.MustParseVersion(or(o.Version, DefaultVersion)),
		min:          wire.MustParseVersion(or(o.MinVersion, DefaultMinVersion)),
		name:         or(o.Server, "Holdfast ("+runtime.GOOS+")"),
		experimental: o.Experimental,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.experimental == nil {
		s.experimental = func() bool { return false }
	}
	s.routes = newRouter(routesOf(o, system.Facts{Version: s.max, MinVersion: s.min, BuilderVersion: or(o.BuilderVersion, "1"), Swarm: o.Swarm}))
	return s
}

// Operations lists the operations that New would serve, as "METHOD /path" with
// {name} and {name...} for variables. It does not call the backends.
func Operations(o Options) []string {
	var all []string
	for _, r := range routesOf(o, system.Facts{}) {
		all = append(all, r.Method+" "+r.Path)
	}
	return all
}

func routesOf(o Options, facts system.Facts) []wire.Route {
	var routes []wire.Route
	routes = append(routes, system.Routes(o.System, facts)...)
	routes = append(routes, container.Routes(o.Containers)...)
	routes = append(routes, image.Routes(o.Images)...)
	routes = append(routes, volume.Routes(o.Volumes)...)
	routes = append(routes, swarm.Networks(o.Swarm, network.Routes(o.Networks))...)
	routes = append(routes, daemon.Routes(o.Daemon, o.Reload, o.Upgrade)...)
	routes = append(routes, build.Routes(o.Builds)...)
	routes = append(routes, swarm.Routes(o.Swarm)...)
	routes = append(routes, emptyRoutes()...)
	return append(routes, unavailableRoutes()...)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// errNotFound is dockerd's answer to a path or method that is not in the API.
var errNotFound = errdefs.ErrNotFound.WithMessage("page not found")

// ServeHTTP answers one request.
func (s *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	began := time.Now()
	tw := &trackedWriter{ResponseWriter: w}
	defer func() {
		if v := recover(); v != nil {
			s.recovered(tw, req, v)
		}
		if s.log.Enabled(req.Context(), slog.LevelDebug) {
			s.log.Debug("request", "method", req.Method, "path", req.URL.Path, "status", tw.status, "took", time.Since(began))
		}
	}()

	h := w.Header()
	h.Set("Server", s.name)
	h.Set("Api-Version", s.max.String())
	h.Set("Ostype", runtime.GOOS)
	h.Set("Docker-Experimental", fmt.Sprint(s.experimental()))

	err := s.serve(tw, req)
	switch {
	case err == nil:
	case wire.Gone(req, err) && tw.taken():
	case wire.Gone(req, err):
		// The client has left, or the daemon stops and has ended the waiting. To a
		// client that is still there, no answer at all would be an empty 200.
		wire.WriteError(tw, errdefs.ErrUnavailable.WithMessage("the daemon stopped before the request was done: ask again, and look first at what became of it"))
	case tw.taken():
		s.log.Error("request failed after its answer had begun", "method", req.Method, "path", req.URL.Path, "error", err)
	default:
		if code := wire.Status(err); code >= http.StatusInternalServerError && code != http.StatusNotImplemented {
			s.log.Error("request failed", "method", req.Method, "path", req.URL.Path, "status", code, "error", err)
		}
		wire.Refuse(tw, req, err)
	}
}

func (s *server) serve(w http.ResponseWriter, req *http.Request) error {
	version := s.max
	v, path, ok := splitVersion(req.URL.Path)
	if ok {
		var err error
		if version, err = wire.ParseVersion(v); err != nil {
			return wire.Invalid("%w", err)
		}
		if version.Less(s.min) {
			return wire.Invalid("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, s.min)
		}
		if s.max.Less(version) {
			return wire.Invalid("client version %s is too new. Maximum supported API version is %s", v, s.max)
		}
	}
	route, vars, ok := s.routes.find(req.Method, path)
	if !ok && req.Method == http.MethodOptions {
		w.WriteHeader(http.StatusOK) // for any path, because browsers send a preflight request first
		return nil
	}
	if !ok {
		return errNotFound
	}
	query, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		return wire.Invalid("invalid query string: %w", err)
	}
	if err := wire.NoNUL(path, query); err != nil {
		return err
	}
	return route.Handle(w, &wire.Request{Request: req, Version: version, Query: query, Log: s.log, Vars: vars})
}

// recovered keeps a panic in one request from ending the daemon.
func (s *server) recovered(w *trackedWriter, req *http.Request, v any) {
	if v == http.ErrAbortHandler {
		panic(v)
	}
	s.log.Error("panic while serving a request", "method", req.Method, "path", req.URL.Path, "panic", v, "stack", string(debug.Stack()))
	if w.hijacked {
		return
	}
	if w.status != 0 {
		// A partial answer must not look complete, so break the connection.
		panic(http.ErrAbortHandler)
	}
	wire.WriteError(w, fmt.Errorf("internal error while serving %s %s; see the daemon's log", req.Method, req.URL.Path))
}
