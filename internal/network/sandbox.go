// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/nft"
	"holdfast/internal/shim/proto"
)

// SandboxSchema is the schema number of the Sandboxes that this release makes.
const SandboxSchema = 1

// Sandbox describes the networking of one run of a container: everything that is
// needed to find it in the kernel, to create it and to undo it, even after the
// daemon's options changed. It is stored with the container.
type Sandbox struct {
	Schema    int    `json:"schema"`
	ID        string `json:"id"`        // of this run, random
	Container string `json:"container"` // ID
	// Mode is bridge, host, none, container:ID or a network's name.
	Mode string `json:"mode"`
	// Netns is the file that the network namespace is mounted on. Empty means the
	// host's namespace.
	Netns string `json:"netns,omitempty"`
	// Shared: the namespace belongs to another container, which creates and removes
	// it.
	Shared bool `json:"shared,omitempty"`
	// Joined: other containers are in the namespace. The caller of Release sets it,
	// because this package can't find out.
	Joined bool `json:"-"`

	Endpoints []Endpoint     `json:"endpoints,omitempty"`
	Ports     []PortMapping  `json:"ports,omitempty"`
	Exposed   []network.Port `json:"exposed,omitempty"`
	// LegacyLinks are the IDs of containers whose exposed ports this one may reach on the
	// default network, even if icc is off.
	LegacyLinks []string `json:"links,omitempty"`

	// Moved: the container was connected or disconnected since it started, so a new
	// shim may need new port targets.
	Moved bool `json:"moved,omitempty"`
	// Applying: ApplySandbox was to make the kernel agree with this sandbox, and is not
	// known to have finished. The caller resets it.
	Applying bool `json:"applying,omitempty"`
	// Left is the endpoint that was removed last. After a crash its interface may
	// still be in the namespace.
	Left *Endpoint `json:"left,omitempty"`
}

// Endpoint is a container's connection to a network.
type Endpoint struct {
	ID        string `json:"id"`
	Network   string `json:"network"`
	NetworkID string `json:"networkID"`

	// For networks with a bridge:
	Bridge   string `json:"bridge,omitempty"`
	HostName string `json:"hostName,omitempty"` // interface on the host
	Name     string `json:"name,omitempty"`     // interface in the container
	MAC      string `json:"mac,omitempty"`
	MTU      int    `json:"mtu,omitempty"`      // bytes
	Isolated bool   `json:"isolated,omitempty"` // by the bridge, from its other ports
	Rules    *Rules `json:"rules,omitempty"`    // nil: the daemon's current ones

	// Overlay: the network spans the nodes of a swarm. The other end of the interface
	// is in the network's own namespace.
	Overlay bool `json:"overlay,omitempty"`

	// Parent is set on networks without a bridge.
	Parent *ParentSettings `json:"link,omitempty"`

	IPv4 Addressing `json:"ipv4,omitzero"`
	IPv6 Addressing `json:"ipv6,omitzero"`

	// Announce is nil for the default.
	Announce *Announcements `json:"announce,omitempty"`

	// Settings is what the user asked for, without operational data.
	Settings *network.EndpointSettings `json:"settings,omitempty"`
}

// ParentSettings name the host's interface that an endpoint sits on.
type ParentSettings struct {
	Kind   string `json:"kind"` // macvlan or ipvlan
	Parent string `json:"parent"`
	Mode   string `json:"mode"`
}

// Addressing is an endpoint's address of one family.
type Addressing struct {
	Address netip.Prefix `json:"address,omitzero"` // with the subnet's length
	Gateway netip.Addr   `json:"gateway,omitzero"`
	// BridgeAddress is the bridge's own address in the subnet. The bridge keeps it
	// as long as an endpoint names it.
	BridgeAddress netip.Prefix `json:"bridgeAddress,omitzero"`
}

// PortMapping is one published port on one address of the host.
type PortMapping struct {
	Proto         string     `json:"proto"`
	ContainerPort uint16     `json:"containerPort"`
	HostIP        netip.Addr `json:"hostIP"` // unspecified means all of its family
	// HostPort is 0 if the port is only reachable at the container's address.
	HostPort uint16 `json:"hostPort"`
	// Target is the container's address and port. Its family differs from HostIP's
	// where only the shim can forward. It is zero if the container has left the
	// network that the port led to.
	Target netip.AddrPort `json:"target"`
}

// Reserved is a host port that is reserved for a container by a bound socket. If
// Target is set, the shim forwards to it, and a tcp socket listens. The receiver
// closes File. Delete the sandbox's elements (TeardownBatch) before closing File:
// they are identified by the port, which any process may take afterwards.
type Reserved struct {
	Proto  string
	Target string
	File   *os.File
}

// target returns the address that a shim forwards to, or "" if it does not
// forward.
func (p *parsed) target(m PortMapping) string {
	if !p.UserlandProxy || !m.Target.IsValid() {
		return ""
	}
	return m.Target.String()
}

// PortTargets returns where the sandbox's ports are forwarded to, for its shim.
func (m *Manager) PortTargets(s Sandbox) []proto.Port {
	out := make([]proto.Port, 0, len(s.Ports))
	for _, p := range s.Ports {
		if p.HostPort == 0 {
			continue // no shim reserves it
		}
		out = append(out, proto.Port{Proto: p.Proto, Host: netip.AddrPortFrom(p.HostIP, p.HostPort).String(), Target: m.opts.target(p)})
	}
	return out
}

func (p PortMapping) element(container string) (nft.Element, bool) {
	e := nft.Element{Proto: p.Proto, Host: p.HostIP, HostPort: p.HostPort, Target: p.Target, Owner: container}
	// The kernel never routes ::1, so the shim forwards it.
	return e, e.Check() == nil && p.HostIP != netip.IPv6Loopback()
}

// elements returns the published ports that the kernel translates or lets
// through.
func (p *parsed) elements(s Sandbox) []nft.Element {
	var es []nft.Element
	rules := p.rulesOf(s)
	filtered := func(a netip.Addr) bool { return a.Is4() && rules.IPv4 || a.Is6() && rules.IPv6 }
	direct := map[nft.Element]bool{}
	for _, m := range s.Ports {
		if e, ok := m.element(s.Container); ok && filtered(m.HostIP) {
			es = append(es, e)
		}
		at := m.Target.Addr()
		if e := (nft.Element{Proto: m.Proto, Host: at, HostPort: m.Target.Port(), Owner: s.Container}); m.Target.IsValid() && filtered(at) &&
			!direct[e] && (m.HostPort == 0 || p.AllowDirect || s.direct(at)) {
			// Several host ports may have the same target.
			direct[e] = true
			es = append(es, e)
		}
	}
	return es
}

// direct reports whether published ports are reachable at one of the container's
// own addresses.
func (s Sandbox) direct(at netip.Addr) bool {
	for _, e := range s.Endpoints {
		if (e.IPv4.Address.Addr() == at || e.IPv6.Address.Addr() == at) && e.Rules != nil {
			return e.Rules.Direct[nft.FamilyOf(at)]
		}
	}
	return false
}

// gateway returns the index of the endpoint that has the default route of a
// family: of those with a gateway the one with the highest priority, then the
// first by network name, as in Docker. It returns -1 if there is none.
func (s Sandbox) gateway(v6 bool) int {
	best := -1
	priority := func(e Endpoint) int {
		if e.Settings == nil {
			return 0
		}
		return e.Settings.GwPriority
	}
	for i, e := range s.Endpoints {
		a := e.IPv4
		if v6 {
			a = e.IPv6
		}
		if !a.Gateway.IsValid() {
			continue
		}
		if best < 0 || priority(e) > priority(s.Endpoints[best]) ||
			priority(e) == priority(s.Endpoints[best]) && e.Network < s.Endpoints[best].Network {
			best = i
		}
	}
	return best
}

// interfaces returns the sandbox in the form that package bridge needs.
func (s Sandbox) interfaces() (bridge.Sandbox, error) {
	b := bridge.Sandbox{Path: s.Netns}
	gw4, gw6 := s.gateway(false), s.gateway(true)
	for i, e := range s.Endpoints {
		if e.Bridge == "" && e.Parent == nil {
			continue
		}
		mac, err := parseMAC(e.MAC)
		if err != nil {
			return b, fmt.Errorf("endpoint %s: %w", e.ID, err)
		}
		sysctls, err := sysctlsOf(e.Settings)
		if err != nil {
			return b, fmt.Errorf("endpoint %s: %w", e.ID, err)
		}
		for i := range sysctls {
			sysctls[i][0] = strings.Replace(sysctls[i][0], "IFNAME", e.Name, 1)
		}
		in := bridge.Interface{Sysctls: sysctls, HostName: e.HostName, Name: e.Name, Bridge: e.Bridge, MAC: mac, MTU: e.MTU, Isolated: e.Isolated}
		in.Quiet = e.Announce != nil && e.Announce.Times == 0
		if e.Parent != nil {
			in.Kind, in.Parent, in.Mode = e.Parent.Kind, e.Parent.Parent, e.Parent.Mode
		}
		for _, a := range []struct {
			Addressing
			routed bool
		}{{e.IPv4, i == gw4}, {e.IPv6, i == gw6}} {
			if !a.Address.IsValid() {
				continue
			}
			in.Addrs = append(in.Addrs, a.Address)
			if a.routed {
				gateway := a.Gateway
				if e.Parent != nil && e.Parent.Kind == driverIPvlan && e.Parent.Mode != "l2" {
					// The parent interface routes, so the route has no next hop.
					gateway = netip.IPv4Unspecified()
					if a.Gateway.Is6() {
						gateway = netip.IPv6Unspecified()
					}
				}
				in.Gateways = append(in.Gateways, gateway)
			}
		}
		if e.Settings != nil && e.Settings.IPAMConfig != nil {
			for _, a := range e.Settings.IPAMConfig.LinkLocalIPs {
				bits := 16
				if a.Is6() {
					bits = 64
				}
				in.Addrs = append(in.Addrs, netip.PrefixFrom(a, bits))
			}
		}
		b.Interfaces = append(b.Interfaces, in)
	}
	return b, nil
}
