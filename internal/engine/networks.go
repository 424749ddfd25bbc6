// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/container"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// NetworkConnect connects a container, running or not, to a network.
func (e *Engine) NetworkConnect(ctx context.Context, ref string, r mobynet.ConnectRequest) error {
	a, err := e.find(ctx, r.Container)
	if err != nil {
		return err
	}
	es := r.EndpointConfig
	if es == nil {
		es = &mobynet.EndpointSettings{}
	}
	p, err := e.attached.place(ctx, a.id, ref, es)
	if err != nil {
		return err
	}
	return e.endpoints.ask(ctx, a, func() error {
		if p == nil {
			return e.endpoints.connect(a, ref, es)
		}
		return e.endpoints.connectPlace(a, p)
	})
}

// ask performs a change of a container's networks in the container's loop.
func (nw *endpoints) ask(ctx context.Context, a *actor, change func() error) error {
	return a.ask(ctx, container.AskNetwork, func(_ container.Action, done func(error)) { done(change()) })
}

// endpoints changes the networks and links of containers, in their loops.
type endpoints struct {
	store    Store
	networks Networks
	index    *index
	journal  *journal
	names    *nameService
	attached *attachments
}

// connectPlace connects the container to a network of the swarm, and to the network by
// which it reaches other hosts if no other one leads there.
func (nw *endpoints) connectPlace(a *actor, p *place) error {
	if err := nw.connect(a, p.network, p.settings); err != nil {
		return err
	}
	if p.internal || nw.attached.leadsOut(a.req) {
		return nil
	}
	return nw.connect(a, network.GatewayNetwork, &mobynet.EndpointSettings{})
}

// connect connects the container to a network, in the loop. It takes a few
// milliseconds of netlink.
func (nw *endpoints) connect(a *actor, ref string, es *mobynet.EndpointSettings) error {
	mode := a.req.HostConfig.NetworkMode
	if mode.IsHost() || mode.IsContainer() {
		return errs.Forbidden("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	if a.req.Config.NetworkDisabled {
		return errs.Forbidden("container %s was created without networking (NetworkDisabled): it can't be connected to a network", a.spec.Name)
	}
	n, err := nw.networks.CheckConnect(ref, es)
	if err != nil {
		return err
	}
	req := a.req
	req.HostConfig, req.Networking = clonePtr(req.HostConfig), cloneNetworking(req.Networking)
	if _, on := networkSettings(nw.networks, a.view.Load()).Networks[n.Name]; on {
		return errs.Forbidden("endpoint with name %s already exists in network %s", a.spec.Name, n.Name)
	}
	req.Networking.EndpointsConfig[n.Name] = es.Copy()
	if mode.IsNone() {
		delete(req.Networking.EndpointsConfig, mobynet.NetworkNone)
		req.HostConfig.NetworkMode = moby.NetworkMode(n.Name)
	}
	if !a.joined() {
		return a.saveChanged(req, a.sandbox)
	}
	next, reserved, err := nw.networks.AddEndpoint(a.sandbox, networkRequest(a.spec, req), n.ID, es)
	if err != nil {
		return err
	}
	defer closeReserved(reserved)
	return nw.changeSandbox(a, req, next, reserved, "connect", next.Endpoints[len(next.Endpoints)-1])
}

// NetworkDisconnect disconnects a container from a network.
func (e *Engine) NetworkDisconnect(ctx context.Context, ref string, r mobynet.DisconnectRequest) error {
	a, err := e.find(ctx, r.Container)
	if err != nil {
		return err
	}
	return e.endpoints.ask(ctx, a, func() error {
		if err := e.endpoints.disconnect(a, ref); err != nil {
			return err
		}
		return e.endpoints.leaveGateway(a)
	})
}

// leaveGateway disconnects a container without networks of the swarm from the network by
// which only those lead to other hosts.
func (nw *endpoints) leaveGateway(a *actor) error {
	_, on := cloneNetworking(a.req.Networking).EndpointsConfig[network.GatewayNetwork]
	if !on || nw.attached.onSwarm(a.req) {
		return nil
	}
	return nw.disconnect(a, network.GatewayNetwork)
}

func (nw *endpoints) disconnect(a *actor, ref string) error {
	on := networkSettings(nw.networks, a.view.Load()).Networks
	name := ref
	if n, err := nw.networks.Network(ref); err == nil {
		name = n.Name
	} else if _, named := on[ref]; !named {
		return err
	}
	if _, is := on[name]; !is {
		if a.joined() { // Docker has two sentences, and tools match both
			return errs.Forbidden("container %s is not connected to network %s", a.id, name)
		}
		return errs.Forbidden("container %s is not connected to the network %s", a.id, name)
	}
	req := a.req
	req.HostConfig, req.Networking = clonePtr(req.HostConfig), cloneNetworking(req.Networking)
	for key := range req.Networking.EndpointsConfig {
		n, err := nw.networks.Network(key)
		if key == name || err == nil && n.Name == name || key == mobynet.NetworkDefault && name == mobynet.NetworkBridge {
			delete(req.Networking.EndpointsConfig, key) // the key may be the network's ID
		}
	}
	switch left := len(req.Networking.EndpointsConfig); {
	case left == 0 && (req.Only || req.HostConfig.NetworkMode.NetworkName() == name):
		req.HostConfig.NetworkMode = mobynet.NetworkNone
	case req.HostConfig.NetworkMode.NetworkName() == name:
		// As in Docker, inspect still shows the requested mode. From now on only the
		// endpoints count.
		req.Only = true
	}
	if !a.joined() {
		return a.saveChanged(req, a.sandbox)
	}
	i := slices.IndexFunc(a.sandbox.Endpoints, func(ep network.Endpoint) bool { return ep.Network == name })
	if i < 0 {
		return a.saveChanged(req, a.sandbox)
	}
	gone := a.sandbox.Endpoints[i]
	next, err := nw.networks.RemoveEndpoint(a.sandbox, name)
	if err != nil {
		return err
	}
	return nw.changeSandbox(a, req, next, nil, "disconnect", gone)
}

// joined reports whether the container's network exists in the kernel.
func (a *actor) joined() bool { return a.phase.State.Alive() && a.sandbox.ID != "" }

// changeSandbox persists a running container's next sandbox, applies it to the
// kernel and the shim, and journals the event. What fails half way is completed by
// the next restore, according to the record.
func (nw *endpoints) changeSandbox(a *actor, req request, next network.Sandbox, reserved []network.Reserved, action string, ep network.Endpoint) error {
	before, was := a.sandbox, a.req
	if err := a.saveChanged(req, next); err != nil {
		nw.networks.Revert(before, next)
		return errors.Join(err, a.saveChanged(was, before))
	}
	failpoint.Here("network.recorded")
	if err := nw.networks.ApplySandbox(context.Background(), before, next); err != nil {
		err = fmt.Errorf("%s %s: %w", action, a.spec.Name, err)
		if action != "connect" {
			return err // the next restore removes what is left of the endpoint
		}
		// Roll back: the record must not name a network that the container can't
		// reach.
		nw.networks.Revert(before, next)
		if uerr := nw.networks.ApplySandbox(context.Background(), next, before); uerr != nil {
			a.log.Warn("a failed connection to a network could not be rolled back completely", "error", uerr)
		}
		return errors.Join(err, a.saveChanged(was, before))
	}
	failpoint.Here("network.changed")
	if next.Applying = false; a.saveChanged(req, next) != nil {
		a.log.Warn("that the container's networks have changed completely could not be recorded: the next daemon sets them up again")
	}
	if err := a.effects.updateFiles(a.spec, a.req, a.sandbox); err != nil {
		a.log.Warn("the container's hosts file could not be updated", "error", err)
	}
	if a.shim != nil {
		if !before.Named() && a.sandbox.Named() {
			if err := a.effects.serveNames(context.Background(), a.shim, a.id, a.sandbox); err != nil {
				a.log.Warn("the container's name server could not be set up: names do not resolve in the container until it is started again", "error", err)
			}
		}
		nw.updateShimPorts(a, a.shim, a.sandbox, reserved)
	}
	nw.journal.endpoint(action, a.id, ep)
	return nil
}

// updateShimPorts informs a shim of the targets of its container's published ports,
// after the container has joined or left a network. New sockets are sent with it.
// Sockets that the shim reports as missing are bound and sent in a second call.
func (nw *endpoints) updateShimPorts(a *actor, shim Shim, s network.Sandbox, reserved []network.Reserved) {
	if len(s.Ports) == 0 {
		return
	}
	send := func(m proto.Ports, reserved []network.Reserved) (proto.PortsReply, error) {
		m.Netlink = nw.networks.TeardownBatch(s)
		files := make([]*os.File, 0, len(reserved))
		for _, r := range reserved {
			m.New = append(m.New, proto.Port{Proto: r.Proto, Target: r.Target})
			files = append(files, r.File)
		}
		return shim.Ports(context.Background(), m, files...)
	}
	reply, err := send(proto.Ports{Ports: nw.networks.PortTargets(s)}, reserved)
	if nets, ok := nw.networks.(reserver); ok && err == nil && len(reply.Missing) > 0 {
		missing := s
		missing.Ports = nil
		for _, i := range reply.Missing {
			missing.Ports = append(missing.Ports, s.Ports[i])
		}
		var again []network.Reserved
		again, err = nets.Reserve(context.Background(), missing)
		defer closeReserved(again)
		if len(again) > 0 {
			_, err = send(proto.Ports{}, again)
		}
	}
	if err != nil {
		a.log.Warn("the shim could not be informed of a changed address: until the container is started again, the published ports that the shim forwards lead to the previous address", "error", err)
	}
}

func closeReserved(reserved []network.Reserved) {
	for _, r := range reserved {
		r.File.Close()
	}
}

// saveChanged persists a request and a sandbox, in the loop.
func (a *actor) saveChanged(req request, s network.Sandbox) error {
	if s.ID != "" {
		raw, err := json.Marshal(s)
		if err != nil {
			return err
		}
		a.spec.Sandbox = raw
	}
	if err := a.saveRequest(req); err != nil {
		return err
	}
	a.sandbox = s
	err := a.save()
	a.publish()
	return err
}

func cloneNetworking(n *mobynet.NetworkingConfig) *mobynet.NetworkingConfig {
	out := &mobynet.NetworkingConfig{EndpointsConfig: map[string]*mobynet.EndpointSettings{}}
	if n != nil {
		maps.Copy(out.EndpointsConfig, n.EndpointsConfig)
	}
	return out
}

func clonePtr[T any](p *T) *T {
	c := *p
	return &c
}
