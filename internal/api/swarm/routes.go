// SPDX-License-Identifier: Apache-2.0

// Package swarm serves the operations of swarm mode by passing the client's
// connection to the process that runs the node. On a host that is in no swarm there
// is no such process, and the package answers itself.
package swarm

import (
	"context"
	"net/http"
	"strings"

	"holdfast/internal/api/wire"
	"holdfast/internal/beside"
	"holdfast/internal/errs"
)

// Backend is what this package needs of package swarm.
type Backend interface {
	// Member reports whether the host is in a swarm.
	Member() bool
	// Ready makes sure that a client can be passed. Errors: ErrNotImplemented if
	// this installation has no swarm mode, ErrUnavailable.
	Ready(ctx context.Context) error
	// Give passes a client to the process, with the headers of every answer. The
	// caller keeps its own descriptor.
	Give(ctx context.Context, client beside.Client, headers map[string][]string) error
	// Ask makes a request of the daemon itself to the process. The caller closes the
	// body of the answer.
	Ask(ctx context.Context, r *http.Request) (*http.Response, error)
}

// Operations are those of swarm mode, as method and path. The process serves the
// same.
var Operations = []string{
	"GET /swarm", "POST /swarm/init", "POST /swarm/join", "POST /swarm/leave", "POST /swarm/update",
	"GET /swarm/unlockkey", "POST /swarm/unlock",
	"GET /nodes", "GET /nodes/{name}", "DELETE /nodes/{name}", "POST /nodes/{name}/update",
	"GET /services", "POST /services/create", "GET /services/{name}", "DELETE /services/{name}",
	"POST /services/{name}/update", "GET /services/{name}/logs",
	"GET /tasks", "GET /tasks/{name}", "GET /tasks/{name}/logs",
	"GET /secrets", "POST /secrets/create", "GET /secrets/{name}", "DELETE /secrets/{name}", "POST /secrets/{name}/update",
	"GET /configs", "POST /configs/create", "GET /configs/{name}", "DELETE /configs/{name}", "POST /configs/{name}/update",
}

// Messages for a host that is in no swarm, as Docker has them.
const (
	noManager = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."
	noSwarm   = "This node is not part of a swarm"
)

// Routes returns the operations of this package. b may be nil: there is no swarm mode.
func Routes(b Backend) []wire.Route {
	var routes []wire.Route
	for _, operation := range Operations {
		method, path, _ := strings.Cut(operation, " ")
		routes = append(routes, wire.Route{Method: method, Path: path, Handle: func(w http.ResponseWriter, r *wire.Request) error {
			switch {
			case b == nil:
				return wire.Unavailable("swarm mode")
			case b.Member() || path == "/swarm/init" || path == "/swarm/join":
				if err := b.Ready(r.Context()); err != nil {
					return err
				}
				return wire.MoveTo(w, r, b.Give)
			case path == "/swarm/leave":
				return errs.Unavailable(noSwarm)
			}
			return errs.Unavailable(noManager)
		}})
	}
	return routes
}
