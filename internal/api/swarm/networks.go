// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/api/wire"
	"holdfast/internal/errs"
	"holdfast/internal/swarm"
)

// Networks adds the networks of the swarm to those of the host. The host's own
// operations answer first, also while the process does not.
func Networks(b Backend, routes []wire.Route) []wire.Route {
	n := &networks{backend: b}
	for i, route := range routes {
		own := route.Handle
		switch route.Method + " " + route.Path {
		case "GET /networks", "GET /networks/":
			routes[i].Handle = n.whenMember(own, n.list)
		case "POST /networks/create":
			routes[i].Handle = n.create(own)
		case "POST /networks/prune":
			routes[i].Handle = n.whenMember(own, n.prune)
		case "GET /networks/{name}":
			n.inspectOwn = own
			routes[i].Handle = n.whenMember(own, n.inspect)
		case "DELETE /networks/{name}":
			routes[i].Handle = n.whenMember(own, n.remove)
		}
	}
	return routes
}

type networks struct {
	backend    Backend
	inspectOwn func(w http.ResponseWriter, r *wire.Request) error
}

type handle = func(w http.ResponseWriter, r *wire.Request) error

// whenMember calls with on a host that is in a swarm, and own on others.
func (n *networks) whenMember(own handle, with func(w http.ResponseWriter, r *wire.Request, own handle) error) handle {
	return func(w http.ResponseWriter, r *wire.Request) error {
		if n.backend == nil || !n.backend.Member() {
			return own(w, r)
		}
		return with(w, r, own)
	}
}

// kept is an answer that is not sent yet.
type kept struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (k *kept) Header() http.Header         { return k.header }
func (k *kept) WriteHeader(status int)      { k.status = status }
func (k *kept) Write(p []byte) (int, error) { return k.body.Write(p) }

// keep runs an operation of the host and keeps its answer.
func keep(own handle, r *wire.Request) (*kept, error) {
	k := &kept{header: http.Header{}, status: http.StatusOK}
	return k, own(k, r)
}

// askTimeout bounds how long an answer waits for what the swarm adds to it.
const askTimeout = 20 * time.Second

// ask repeats the client's request at the process.
func (n *networks) ask(r *wire.Request, body []byte) (status int, text []byte, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	again, err := http.NewRequestWithContext(ctx, r.Method, "http://daemon"+(&url.URL{Path: r.URL.Path, RawQuery: r.URL.RawQuery}).RequestURI(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	again.Header.Set("Content-Type", "application/json")
	resp, err := n.backend.Ask(ctx, again)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(resp.Body)
	return resp.StatusCode, text, err
}

// list adds the networks that the host does not know by itself.
func (n *networks) list(w http.ResponseWriter, r *wire.Request, own handle) error {
	k, err := keep(own, r)
	if err != nil {
		return err
	}
	var all, more []json.RawMessage
	if err := json.Unmarshal(k.body.Bytes(), &all); err != nil {
		return err
	}
	known := map[string]bool{}
	for _, one := range all {
		known[idOf(one)] = true
	}
	// Without the process the host's networks are shown alone.
	if status, text, err := n.ask(r, nil); err == nil && status == http.StatusOK && json.Unmarshal(text, &more) == nil {
		for _, one := range more {
			if !known[idOf(one)] {
				all = append(all, one)
			}
		}
	}
	return wire.WriteJSON(w, http.StatusOK, wire.NonNil(all))
}

func idOf(one json.RawMessage) string {
	var n struct {
		ID string `json:"Id"`
	}
	_ = json.Unmarshal(one, &n)
	return n.ID
}

// inspect shows a network of the host, or else one of the swarm.
func (n *networks) inspect(w http.ResponseWriter, r *wire.Request, own handle) error {
	if r.Query.Get("scope") != "swarm" {
		k, err := keep(own, r)
		switch {
		case err == nil && r.Query.Get("scope") == "local":
			return wire.WriteJSON(w, k.status, json.RawMessage(k.body.Bytes()))
		case err == nil:
			return wire.WriteJSON(w, k.status, n.completed(r, k.body.Bytes()))
		}
		if !errdefs.IsNotFound(err) || r.Query.Get("scope") == "local" {
			return err
		}
	}
	return n.move(w, r)
}

// completed adds to a network of the swarm what the process knows of it: the nodes, and
// if the client asks for it the services. Without the process the network is shown as
// the host knows it.
func (n *networks) completed(r *wire.Request, text []byte) json.RawMessage {
	var shown network.Inspect
	if json.Unmarshal(text, &shown) != nil || shown.Scope != "swarm" {
		return text
	}
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon"+swarm.InspectPath+url.PathEscape(shown.ID), nil)
	if err != nil {
		return text
	}
	resp, err := n.backend.Ask(ctx, req)
	if err != nil {
		return text
	}
	defer resp.Body.Close()
	var known swarm.Mesh
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&known) != nil {
		return text
	}
	shown.Peers = known.Peers
	if r.Bool("verbose") {
		shown.Services = known.Services
	}
	if more, err := json.Marshal(shown); err == nil {
		return more
	}
	return text
}

// move passes the client to the process.
func (n *networks) move(w http.ResponseWriter, r *wire.Request) error {
	if err := n.backend.Ready(r.Context()); err != nil {
		return err
	}
	return wire.MoveTo(w, r, n.backend.Give)
}

// create passes requests for networks of the swarm. Which those are is in the body.
func (n *networks) create(own handle) handle {
	return func(w http.ResponseWriter, r *wire.Request) error {
		if n.backend == nil {
			return own(w, r)
		}
		text, err := r.ReadBody(w)
		if err != nil {
			return err
		}
		if text == nil {
			return own(w, r)
		}
		r.Body = io.NopCloser(bytes.NewReader(text))
		var req network.CreateRequest
		if json.Unmarshal(text, &req) != nil || req.Driver != "overlay" && req.Scope != "swarm" && !req.Ingress {
			return own(w, r)
		}
		if !n.backend.Member() {
			return errs.Unavailable(noManager)
		}
		return n.relay(w, r, text)
	}
}

// relay answers with the answer of the process.
func (n *networks) relay(w http.ResponseWriter, r *wire.Request, body []byte) error {
	status, text, err := n.ask(r, body)
	if err != nil {
		return err
	}
	if len(text) == 0 {
		w.WriteHeader(status)
		return nil
	}
	return wire.WriteJSON(w, status, json.RawMessage(text))
}

// remove removes a network of the host, or of the swarm.
func (n *networks) remove(w http.ResponseWriter, r *wire.Request, own handle) error {
	k, err := keep(n.inspectOwn, r)
	var found network.Network
	if err == nil && json.Unmarshal(k.body.Bytes(), &found) == nil && found.Scope != "swarm" {
		return own(w, r)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return n.relay(w, r, nil)
}

// prune removes unused networks of the host, and of the swarm.
func (n *networks) prune(w http.ResponseWriter, r *wire.Request, own handle) error {
	k, err := keep(own, r)
	if err != nil {
		return err
	}
	var report, more network.PruneReport
	if err := json.Unmarshal(k.body.Bytes(), &report); err != nil {
		return err
	}
	if status, text, err := n.ask(r, nil); err == nil && status == http.StatusOK && json.Unmarshal(text, &more) == nil {
		report.NetworksDeleted = append(report.NetworksDeleted, more.NetworksDeleted...)
	}
	return wire.WriteJSON(w, http.StatusOK, report)
}
