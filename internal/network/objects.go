package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/filter"
)

// lookup finds a network by its name, its ID or the beginning of its ID. m.mu
// is held.
func (m *Manager) lookup(ref string) (*object, error) {
	if n := m.networks[ref]; n != nil {
		return n, nil
	}
	var found *object
	for _, n := range m.networks {
		if n.ID == ref {
			return n, nil
		}
		if ref != "" && strings.HasPrefix(n.ID, ref) {
			if found != nil {
				return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("network %s is ambiguous (2 matches found based on ID prefix)", ref))
			}
			found = n
		}
	}
	if found == nil {
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", ref))
	}
	return found, nil
}

// List gives the networks that match: driver, id, label, name, scope, type
// (builtin or custom) and dangling. It fails with ErrInvalidArgument.
func (m *Manager) List(args filter.Args) ([]network.Summary, error) {
	if err := args.Check("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	for _, t := range args["type"] {
		if t != "builtin" && t != "custom" {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter: 'type'='%s'", t))
		}
	}
	dangling, only, err := args.Bool("dangling")
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := []network.Summary{}
	for _, name := range slices.Sorted(maps.Keys(m.networks)) {
		n := m.networks[name]
		kind := "custom"
		if predefined(name) {
			kind = "builtin"
		}
		if only && dangling != (kind == "custom" && !m.inUse(n)) {
			continue
		}
		if args.Exact("driver", n.Driver) && args.Prefix("id", n.ID) && args.Match("name", n.Name) &&
			args.Exact("scope", scope) && args.Exact("type", kind) && args.KV("label", n.Labels) {
			out = append(out, network.Summary{Network: n.api()})
		}
	}
	return out, nil
}

// Inspect describes a network. name gives the name of a container by its ID.
// It fails with ErrNotFound, or with ErrInvalidArgument if ref is ambiguous.
func (m *Manager) Inspect(ref string, name func(container string) string) (network.Inspect, error) {
	m.mu.Lock()
	n, err := m.lookup(ref)
	if err != nil {
		m.mu.Unlock()
		return network.Inspect{}, err
	}
	out := network.Inspect{Network: n.api(), Containers: map[string]network.EndpointResource{}}
	for id, s := range m.sandboxes {
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
	m.mu.Unlock()
	// Not under the lock: the name is another owner's.
	for id, r := range out.Containers {
		r.Name = name(id)
		out.Containers[id] = r
	}
	return out, nil
}

const scope = "local"

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
	for _, s := range n.Subnets {
		out.IPAM.Config = append(out.IPAM.Config, s.api())
	}
	return out
}

func (s subnet) api() network.IPAMConfig {
	return network.IPAMConfig{Subnet: s.Prefix, IPRange: s.Range, Gateway: s.Gateway, AuxAddress: s.Aux}
}

func (m *Manager) inUse(n *object) bool {
	for _, s := range m.sandboxes {
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

// Gateways are the addresses of a network's gateways, by which its containers
// know the host (host-gateway).
func (m *Manager) Gateways(ref string) ([]netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup(ref)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, s := range n.Subnets {
		if s.Bridge.IsValid() {
			out = append(out, s.Bridge)
		}
	}
	return out, nil
}
