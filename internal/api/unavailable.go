// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/http"
	"strings"

	"holdfast/internal/api/wire"
)

// unavailable lists the API operations that this release does not have, by what
// they would do. A test compares the routes with the API's own description, so
// that none is missing.
var unavailable = []struct {
	what  string
	paths []string // method and path
}{
	{"checkpoint and restore of a container", []string{
		"GET /containers/{name}/checkpoints", "POST /containers/{name}/checkpoints",
		"DELETE /containers/{name}/checkpoints/{checkpoint}",
	}},
	{"updating cluster volumes", []string{"PUT /volumes/{name}"}},
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
