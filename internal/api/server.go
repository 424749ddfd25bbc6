// Package api serves the Docker Engine API over HTTP: it negotiates the
// version, finds the route, and turns errors and panics into answers. Each kind
// of object has its folder, which declares the Backend that it needs; what all
// of them share is in wire. It owns no state and starts nothing: listeners,
// TLS and the engine belong to who calls New. The server in front must speak
// HTTP/1.1 only, as attach and exec take connections over.
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

	"holdfast/internal/api/container"
	"holdfast/internal/api/daemon"
	"holdfast/internal/api/image"
	"holdfast/internal/api/network"
	"holdfast/internal/api/system"
	"holdfast/internal/api/volume"
	"holdfast/internal/api/wire"
)

const (
	// DefaultVersion is the newest version of the API that is served: that of
	// the module github.com/moby/moby/api which the types come from.
	DefaultVersion = "1.56"
	// DefaultMinVersion is the oldest.
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
	Reload     daemon.Reloader // nil: the API reloads nothing
	Upgrade    daemon.Upgrader // nil: no other daemon is started

	Log *slog.Logger // nil discards

	// Version and MinVersion bound the API; empty are DefaultVersion and
	// DefaultMinVersion.
	Version, MinVersion string
	// Server is the Server header, such as "Holdfast/0.1.0 (linux)".
	Server string
	// Experimental says whether experimental features are on; nil is no.
	Experimental func() bool
	// BuilderVersion is the builder that clients are told to use: "1" for the
	// one in the daemon, "2" for BuildKit. Empty is "1", whose request gets a
	// clear refusal as long as there is no build.
	BuilderVersion string
}

type server struct {
	routes       *router
	log          *slog.Logger
	min, max     wire.Version
	name         string
	experimental func() bool
}

// New makes the handler of the whole API. It panics on a version that can't be
// parsed, which only a programming error makes.
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
	builder := or(o.BuilderVersion, "1")
	var routes []wire.Route
	routes = append(routes, system.Routes(o.System, system.Facts{Version: s.max, MinVersion: s.min, BuilderVersion: builder})...)
	routes = append(routes, container.Routes(o.Containers)...)
	routes = append(routes, image.Routes(o.Images)...)
	routes = append(routes, volume.Routes(o.Volumes)...)
	routes = append(routes, network.Routes(o.Networks)...)
	routes = append(routes, daemon.Routes(o.Daemon, o.Reload, o.Upgrade)...)
	routes = append(routes, emptyRoutes()...)
	routes = append(routes, unavailableRoutes()...)
	s.routes = newRouter(routes)
	return s
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// errNotFound is dockerd's answer to a path or method that isn't the API's.
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
	case wire.Gone(req, err):
	case tw.taken():
		s.log.Error("request failed after its answer had begun", "method", req.Method, "path", req.URL.Path, "error", err)
	default:
		if code := wire.Status(err); code >= http.StatusInternalServerError && code != http.StatusNotImplemented {
			s.log.Error("request failed", "method", req.Method, "path", req.URL.Path, "status", code, "error", err)
		}
		wire.WriteError(tw, err)
	}
}

func (s *server) serve(w http.ResponseWriter, req *http.Request) error {
	version, path := s.max, req.URL.Path
	if v, rest, ok := splitVersion(path); ok {
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
		path = rest
	}
	route, vars, ok := s.routes.find(req.Method, path)
	if !ok {
		return errNotFound
	}
	query, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		return wire.Invalid("invalid query string: %w", err)
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
		// Half an answer must not look like a whole one.
		panic(http.ErrAbortHandler)
	}
	wire.WriteError(w, fmt.Errorf("internal error while serving %s %s; the daemon's log says more", req.Method, req.URL.Path))
}
