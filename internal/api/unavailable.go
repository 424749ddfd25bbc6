package api

import (
	"net/http"
	"strings"

	"holdfast/internal/api/wire"
)

// unavailable lists the operations of the API that this release doesn't have,
// by what they would do. A test compares the served routes with the API's own
// description, so that none is missing.
var unavailable = []struct {
	what  string
	paths []string // method and path
}{
	{"building images", []string{
		"POST /build", "POST /build/cancel", "POST /session", "POST /grpc",
	}},
	{"checkpoint and restore of a container", []string{
		"GET /containers/{name}/checkpoints", "POST /containers/{name}/checkpoints",
		"DELETE /containers/{name}/checkpoints/{checkpoint}",
	}},
	{"searching for images", []string{"GET /images/search"}},
	{"reading the attestations of an image", []string{"GET /images/{name...}/attestations"}},
	{"inspecting images in a registry", []string{"GET /distribution/{name...}/json"}},
	{"updating cluster volumes", []string{"PUT /volumes/{name}"}},
	{"swarm mode", []string{
		"GET /swarm", "POST /swarm/init", "POST /swarm/join", "POST /swarm/leave", "POST /swarm/update",
		"GET /swarm/unlockkey", "POST /swarm/unlock",
		"GET /nodes", "GET /nodes/{name}", "DELETE /nodes/{name}", "POST /nodes/{name}/update",
		"GET /services", "POST /services/create", "GET /services/{name}", "DELETE /services/{name}",
		"POST /services/{name}/update", "GET /services/{name}/logs",
		"GET /tasks", "GET /tasks/{name}", "GET /tasks/{name}/logs",
		"GET /secrets", "POST /secrets/create", "GET /secrets/{name}", "DELETE /secrets/{name}", "POST /secrets/{name}/update",
		"GET /configs", "POST /configs/create", "GET /configs/{name}", "DELETE /configs/{name}", "POST /configs/{name}/update",
	}},
	{"managing plugins", []string{
		"GET /plugins/privileges", "POST /plugins/pull", "POST /plugins/create",
		"DELETE /plugins/{name...}",
		"POST /plugins/{name...}/enable", "POST /plugins/{name...}/disable", "POST /plugins/{name...}/upgrade",
		"POST /plugins/{name...}/push", "POST /plugins/{name...}/set",
	}},
}

func unavailableRoutes() []wire.Route {
	var routes []wire.Route
	for _, u := range unavailable {
		refuse := func(http.ResponseWriter, *wire.Request) error { return wire.Unavailable(u.what) }
		for _, p := range u.paths {
			method, path, _ := strings.Cut(p, " ")
			routes = append(routes, wire.Route{Method: method, Path: path, Handle: refuse})
		}
	}
	return routes
}
