package api

import (
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/plugin"

	"holdfast/internal/api/wire"
)

// emptyRoutes answer for kinds of object of which this release can't have any,
// where a refusal would break commands that are about something else: "docker
// inspect NAME" asks for a plugin last, "docker system prune" prunes the build
// cache too, and programs that show a host list its plugins.
func emptyRoutes() []wire.Route {
	return []wire.Route{
		{Method: "GET", Path: "/plugins", Handle: func(w http.ResponseWriter, _ *wire.Request) error {
			return wire.WriteJSON(w, http.StatusOK, plugin.ListResponse{})
		}},
		{Method: "GET", Path: "/plugins/{name...}/json", Handle: func(_ http.ResponseWriter, r *wire.Request) error {
			return fmt.Errorf("plugin %q: %w", r.Name(), errdefs.ErrNotFound)
		}},
		{Method: "POST", Path: "/build/prune", Handle: func(w http.ResponseWriter, _ *wire.Request) error {
			return wire.WriteJSON(w, http.StatusOK, build.CachePruneReport{CachesDeleted: []string{}})
		}},
	}
}
