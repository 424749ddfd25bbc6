// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/http"

	"github.com/moby/moby/api/types/plugin"

	"holdfast/internal/api/wire"
	"holdfast/internal/errs"
)

// emptyRoutes answer for kinds of objects that this release does not have,
// where an error would break commands about other objects: "docker inspect
// NAME" asks for a plugin last, and programs that show a host list its plugins.
func emptyRoutes() []wire.Route {
	return []wire.Route{
		{Method: "GET", Path: "/plugins", Handle: func(w http.ResponseWriter, _ *wire.Request) error {
			return wire.WriteJSON(w, http.StatusOK, plugin.ListResponse{})
		}},
		{Method: "GET", Path: "/plugins/{name...}/json", Handle: func(_ http.ResponseWriter, r *wire.Request) error {
			return errs.NotFound("plugin %q not found", r.Name())
		}},
	}
}
