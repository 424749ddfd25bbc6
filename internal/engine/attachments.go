// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/network"
)

// scopeSwarm is the scope of networks whose addresses a swarm gives.
const scopeSwarm = "swarm"

// attachments gives containers that are no tasks their addresses on networks of the
// swarm. A container keeps an address until it is disconnected or removed, also while it
// does not run: its start needs no manager. The process of the swarm gives addresses
// back whose container is not on the network, so nothing has to be undone here.
type attachments struct {
	swarm    Swarm // nil: there is no swarm mode
	networks Networks
}

// attach completes the request for a new container.
func (at *attachments) attach(ctx context.Context, id string, r *request) error {
	if at.swarm == nil || !at.swarm.Member() || r.Config.NetworkDisabled {
		return nil
	}
	next := cloneNetworking(r.Networking)
	refs := slices.Sorted(maps.Keys(next.EndpointsConfig))
	mode := r.HostConfig.NetworkMode
	if name := mode.NetworkName(); mode.IsUserDefined() && !r.Only && !slices.Contains(refs, name) {
		refs = append(refs, name)
	}
	attached, outside := false, false
	for _, ref := range refs {
		p, err := at.place(ctx, id, ref, next.EndpointsConfig[ref])
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		delete(next.EndpointsConfig, ref)
		next.EndpointsConfig[p.network] = p.settings
		attached, outside = true, outside || !p.internal
	}
	if !attached {
		return nil
	}
	r.Networking = next
	if outside && !at.leadsOut(*r) {
		next.EndpointsConfig[network.GatewayNetwork] = &mobynet.EndpointSettings{}
	}
	return nil
}

// place is a container's place on a network of the swarm.
type place struct {
	network  string // its name
	settings *mobynet.EndpointSettings
	internal bool
}

// place returns a container's place on a network, or nil if the network is not one of
// the swarm. It waits for the managers, which know networks that this host does not.
func (at *attachments) place(ctx context.Context, id, ref string, es *mobynet.EndpointSettings) (*place, error) {
	if at.swarm == nil || !at.swarm.Member() {
		return nil, nil
	}
	if n, err := at.networks.Network(ref); err == nil {
		if n.Scope != scopeSwarm {
			return nil, nil
		}
		ref = n.Name // the managers know no beginnings of IDs
	}
	es = es.Copy()
	if es == nil {
		es = &mobynet.EndpointSettings{}
	}
	if len(es.MacAddress) > 0 {
		return nil, errs.Invalid("the MAC address of a container on %s, a network of the swarm, follows from its IP address: leave out --mac-address", ref)
	}
	var want netip.Addr
	if es.IPAMConfig != nil {
		want = es.IPAMConfig.IPv4Address
	}
	name, address, internal, err := at.swarm.Attach(ctx, id, ref, want)
	if errdefs.IsNotFound(err) {
		return nil, nil // the network may be created later, as on a host in no swarm
	}
	if err != nil {
		return nil, err
	}
	config := mobynet.EndpointIPAMConfig{}
	if es.IPAMConfig != nil {
		config = *es.IPAMConfig
	}
	config.IPv4Address = address
	es.IPAMConfig = &config
	return &place{name, es, internal}, nil
}

// leadsOut reports whether a network that is not the swarm's leads a container to other
// hosts.
func (at *attachments) leadsOut(r request) bool {
	mode := r.HostConfig.NetworkMode
	if !r.Only && (mode.IsBridge() || mode.IsDefault()) {
		return true
	}
	for ref := range cloneNetworking(r.Networking).EndpointsConfig {
		n, err := at.networks.Network(ref)
		if err == nil && n.Scope != scopeSwarm && !n.Internal && n.Driver != "null" {
			return true
		}
	}
	return false
}

// onSwarm reports whether a container is on a network of the swarm.
func (at *attachments) onSwarm(r request) bool {
	for ref := range cloneNetworking(r.Networking).EndpointsConfig {
		if n, err := at.networks.Network(ref); err == nil && n.Scope == scopeSwarm {
			return true
		}
	}
	return false
}
