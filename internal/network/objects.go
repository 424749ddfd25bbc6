// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/filter"
	"holdfast/internal/lookup"
)

// lookup finds a network by its ID, its name or the beginning of its ID, in this
// order.
func (v *inventory) lookup(ref string) (*object, error) {
	ids := make(map[string]*object, len(v.networks))
	for _, n := range v.networks {
		ids[n.ID] = n
	}
	n, err := lookup.Find(ref, lookup.In[*object]{
		ID:   func(id string) (*object, bool) { n, ok := ids[id]; return n, ok },
		Name: func(name string) (*object, bool) { n, ok := v.networks[name]; return n, ok },
		All:  maps.All(ids),
	})
	switch {
	case errors.Is(err, lookup.ErrSeveral):
		return nil, errs.Invalid("network %s is ambiguous (2 matches found based on ID prefix)", ref)
	case err != nil:
		return nil, errs.NotFound("network %s not found", ref)
	}
	return n, nil
}

// List returns the networks that match the filters driver, id, label, name,
// scope, type (builtin or custom) and dangling. It fails with ErrInvalidArgument.
func (reg *registry) List(args filter.Args) ([]network.Summary, error) {
	if err := args.Check("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	for _, t := range args["type"] {
		if t != "builtin" && t != "custom" {
			return nil, errs.Invalid("invalid filter: 'type'='%s'", t)
		}
	}
	dangling, only, err := args.Bool("dangling")
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	out := []network.Summary{}
	for _, name := range slices.Sorted(maps.Keys(reg.inv.networks)) {
		n := reg.inv.networks[name]
		kind := "custom"
		if predefined(name) {
			kind = "builtin"
		}
		if only && dangling != (kind == "custom" && !reg.inv.inUse(n)) {
			continue
		}
		if args.Exact("driver", n.Driver) && args.Prefix("id", n.ID) && args.Match("name", n.Name) &&
			args.Exact("scope", n.api().Scope) && args.Exact("type", kind) && args.KV("label", n.Labels) {
			out = append(out, network.Summary{Network: n.api()})
		}
	}
	return out, nil
}

// Inspect describes a network. name returns a container's name by its ID. It
// fails with ErrNotFound, or with ErrInvalidArgument if ref is ambiguous.
func (reg *registry) Inspect(ref string, name func(container string) string) (network.Inspect, error) {
	reg.mu.Lock()
	n, err := reg.inv.lookup(ref)
	if err != nil {
		reg.mu.Unlock()
		return network.Inspect{}, err
	}
	out := network.Inspect{Network: n.api(), Containers: map[string]network.EndpointResource{}}
	for id, s := range reg.inv.sandboxes {
		for _, e := range s.Endpoints {
			if e.NetworkID == n.ID {
				out.Containers[id] = network.EndpointResource{
					EndpointID: e.ID, MacAddress: hardwareAddr(e.MAC),
					IPv4Address: e.IPv4.Address, IPv6Address: e.IPv6.Address,
				}
			}
		}
	}
	if len(n.allocators) > 0 {
		out.Status = &network.Status{IPAM: network.IPAMStatus{Subnets: network.SubnetStatuses{}}}
		for _, a := range n.allocators {
			used, free := a.Usage()
			out.Status.IPAM.Subnets[a.Subnet()] = network.SubnetStatus{IPsInUse: used, DynamicIPsAvailable: free}
		}
	}
	reg.mu.Unlock()
	// Without the lock, because name takes locks of its owner.
	for id, r := range out.Containers {
		r.Name = name(id)
		out.Containers[id] = r
	}
	return out, nil
}

// The scopes of networks, by Docker's names.
const (
	scope      = "local"
	scopeSwarm = "swarm"
)

func (n *object) api() network.Network {
	out := network.Network{
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: scope, Driver: n.Driver,
		EnableIPv4: n.EnableIPv4, EnableIPv6: n.EnableIPv6, Internal: n.Internal, Attachable: n.Attachable,
		ConfigOnly: n.ConfigOnly, ConfigFrom: network.ConfigReference{Network: n.ConfigFrom},
		IPAM:    network.IPAM{Driver: "default", Options: maps.Clone(n.IPAMOptions), Config: []network.IPAMConfig{}},
		Options: maps.Clone(n.Options), Labels: maps.Clone(n.Labels),
	}
	if out.Options == nil {
		out.Options = map[string]string{}
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if n.Driver == "host" || n.Driver == "null" && !n.ConfigOnly {
		out.IPAM.Config = nil // they allocate no addresses
	}
	for _, s := range n.Subnets {
		out.IPAM.Config = append(out.IPAM.Config, s.api())
	}
	if n.Overlay != nil {
		out.Scope, out.Ingress = scopeSwarm, n.Overlay.Ingress
	}
	return out
}

func (s subnet) api() network.IPAMConfig {
	return network.IPAMConfig{Subnet: s.Prefix, IPRange: s.Range, Gateway: s.Gateway, AuxAddress: s.Aux}
}

func (v *inventory) inUse(n *object) bool {
	for _, s := range v.sandboxes {
		for _, e := range s.Endpoints {
			if e.NetworkID == n.ID {
				return true
			}
		}
	}
	return false
}

func predefined(name string) bool {
	return name == network.NetworkBridge || name == network.NetworkHost || name == network.NetworkNone
}

// HostGateway returns the addresses by which every container knows the host
// (host-gateway), whatever networks it is on, as in Docker: those of the default
// bridge, one of each family. Without a default network there is none.
func (reg *registry) HostGateway() (out []netip.Addr) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n := reg.inv.networks[network.NetworkBridge]
	if n == nil {
		return nil
	}
	for _, s := range n.Subnets {
		if s.Bridge.IsValid() {
			out = append(out, s.Bridge)
		}
	}
	return out
}
