// SPDX-License-Identifier: Apache-2.0

// Package tasks serves the process that runs a swarm node. It has the whole API of
// the daemon, and one operation that no other client has: to create the container of
// a task. Only that process reaches it, over a socket of its own.
package tasks

import (
	"context"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
	"holdfast/internal/swarm"
)

// Backend is what this package needs of the engine.
type Backend interface {
	ContainerCreate(ctx context.Context, o engine.CreateOptions) (container.CreateResponse, error)
}

// Handler adds the operation to the API.
func Handler(api http.Handler, b Backend) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		task, ok := strings.CutPrefix(r.URL.Path, swarm.TasksPath)
		if !ok || r.Method != http.MethodPost || task == "" {
			api.ServeHTTP(w, r)
			return
		}
		req := &wire.Request{Request: r, Query: r.URL.Query()}
		if err := create(w, req, b, task); err != nil {
			wire.WriteError(w, err)
		}
	})
}

func create(w http.ResponseWriter, r *wire.Request, b Backend, task string) error {
	req := container.CreateRequest{HostConfig: &container.HostConfig{}, NetworkingConfig: &network.NetworkingConfig{}}
	if _, err := r.Decode(w, &req); err != nil {
		return err
	}
	res, err := b.ContainerCreate(r.Context(), engine.CreateOptions{Name: r.Query.Get("name"), Task: task, Request: req})
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusCreated, res)
}
