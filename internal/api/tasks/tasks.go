// SPDX-License-Identifier: Apache-2.0

// Package tasks serves the process that runs a swarm node. It has the whole API of
// the daemon, and operations that no other client has: to create the container of a
// task, to record the events of the swarm, and to define the overlay networks of tasks.
// Only that process reaches it, over a socket of its own.
package tasks

import (
	"context"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
	"holdfast/internal/errs"
	"holdfast/internal/event"
	"holdfast/internal/network/overlay"
	"holdfast/internal/swarm"
)

// Backend is what this package needs of the engine.
type Backend interface {
	ContainerCreate(ctx context.Context, o engine.CreateOptions) (container.CreateResponse, error)
}

// Journal records events; see event.Journal.
type Journal interface {
	Append(m event.Message) (bool, error)
}

// Overlays is what this package needs of package network.
type Overlays interface {
	DefineOverlay(ctx context.Context, d overlay.Definition) error
	ForgetOverlay(ctx context.Context, id string) error
	Overlays() []string
}

// Handler adds the operations to the API.
func Handler(api http.Handler, b Backend, j Journal, nets Overlays) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id, ok := strings.CutPrefix(r.URL.Path, swarm.OverlaysPath); ok {
			if err := overlays(w, r, nets, id); err != nil {
				wire.WriteError(w, err)
			}
			return
		}
		if r.URL.Path == swarm.EventsPath && r.Method == http.MethodPost {
			if err := record(w, &wire.Request{Request: r}, j); err != nil {
				wire.WriteError(w, err)
			}
			return
		}
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

func record(w http.ResponseWriter, r *wire.Request, j Journal) error {
	var list []event.Message
	if _, err := r.Decode(w, &list); err != nil {
		return err
	}
	for _, m := range list {
		if _, err := j.Append(m); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
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

func overlays(w http.ResponseWriter, r *http.Request, nets Overlays, id string) error {
	switch r.Method {
	case http.MethodGet:
		return wire.WriteJSON(w, http.StatusOK, nets.Overlays())
	case http.MethodPut:
		var d overlay.Definition
		if _, err := (&wire.Request{Request: r, Query: r.URL.Query()}).Decode(w, &d); err != nil {
			return err
		}
		return nets.DefineOverlay(r.Context(), d)
	case http.MethodDelete:
		return nets.ForgetOverlay(r.Context(), id)
	}
	return errs.NotImplemented("%s %s", r.Method, r.URL.Path)
}
