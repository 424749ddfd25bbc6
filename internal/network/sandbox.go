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

// Sandbox is one life of a container's networking: all that is needed to find
// it in the kernel, to make it and to undo it, whatever the daemon's options
// have become. It is stored with the container.
type Sandbox struct {
	Schema    int    `json:"schema"`
	ID        string `json:"id"`        // of this life, random
	Container string `json:"container"` // ID
	// Mode is bridge, host, none, container:ID or a network's name.
	Mode string `json:"mode"`
	// Netns is the file that the network namespace is mounted on. Empty is the
	// host's.
	Netns string `json:"netns,omitempty"`
	// Shared: the namespace is another container's, who makes and removes it.
	Shared bool `json:"shared,omitempty"`
	// Joined: other containers are in the namespace. Who releases says so, as
	// nothing here knows.
	Joined bool `json:"-"`

	Endpoints []Endpoint     `json:"endpoints,omitempty"`
	Ports     []PortMapping  `json:"ports,omitempty"`
	Exposed   []network.Port `json:"exposed,omitempty"`

	// Moved: the container has joined or left a network since it started, so
	// its shim may have to be told where its ports lead.
	Moved bool `json:"moved,omitempty"`
	// Left is the endpoint that the container left last. A crash may have kept
	// its interface in the namespace.
	Left *Endpoint `json:"left,omitempty"`
}

// Endpoint is a container's place in a network.
type Endpoint struct {
	ID        string `json:"id"`
	Network   string `json:"network"`
	NetworkID string `json:"networkID"`

	// Of networks with a bridge:
	Bridge   string `json:"bridge,omitempty"`
	HostName string `json:"hostName,omitempty"` // interface on the host
	Name     string `json:"name,omitempty"`     // interface in the container
	MAC      string `json:"mac,omitempty"`
	MTU      int    `json:"mtu,omitempty"`      // bytes
	Isolated bool   `json:"isolated,omitempty"` // by the bridge, from its other ports
	Rules    *Rules `json:"rules,omitempty"`    // nil: those of the day

	// Link is set on networks without a bridge.
	Link *LinkSettings `json:"link,omitempty"`

	IPv4 Addressing `json:"ipv4,omitzero"`
	IPv6 Addressing `json:"ipv6,omitzero"`

	// Settings is what the user asked for, without operational data.
	Settings *network.EndpointSettings `json:"settings,omitempty"`
}

// LinkSettings say which interface of the host an endpoint sits on.
type LinkSettings struct {
	Kind   string `json:"kind"` // macvlan or ipvlan
	Parent string `json:"parent"`
	Mode   string `json:"mode"`
}

// Addressing is an endpoint's address of one family.
type Addressing struct {
	Address netip.Prefix `json:"address,omitzero"` // with the subnet's length
	Gateway netip.Addr   `json:"gateway,omitzero"`
	// BridgeAddress is the bridge's own address in the subnet. It stays on the
	// bridge as long as an endpoint names it.
	BridgeAddress netip.Prefix `json:"bridgeAddress,omitzero"`
}

// PortMapping is one published port on one address of the host.
type PortMapping struct {
	Proto         string     `json:"proto"`
	ContainerPort uint16     `json:"containerPort"`
	HostIP        netip.Addr `json:"hostIP"` // unspecified is all of its family
	// HostPort is 0 where the port is reached at the container's address alone.
	HostPort uint16 `json:"hostPort"`
	// Target is the container's address and port. It is of another family than
	// HostIP where only the shim can forward. The zero one leads nowhere: the
	// container has left the network that it led to.
	Target netip.AddrPort `json:"target"`
}

// Reserved is a host port that is kept for a container: a socket that is bound
// and, if Target is set, forwards to it; tcp then listens. Who gets File closes
// it. The elements of a sandbox must be gone (TeardownBatch) before File is
// closed: they are named by the port, which then is anyone's.
type Reserved struct {
	Proto  string
	Target string
	File   *os.File
}

// target is where a shim shall forward to.
func (p parsed) target(m PortMapping) string {
	if !p.UserlandProxy || !m.Target.IsValid() {
		return ""
	}
	return m.Target.String()
}

// Leads says where a sandbox's ports lead, for its shim.
func (m *Manager) Leads(s Sandbox) []proto.Port {
	out := make([]proto.Port, 0, len(s.Ports))
	for _, p := range s.Ports {
		if p.HostPort == 0 {
			continue // no shim keeps it
		}
		out = append(out, proto.Port{Proto: p.Proto, Host: netip.AddrPortFrom(p.HostIP, p.HostPort).String(), Target: m.opts.target(p)})
	}
	return out
}

func (p PortMapping) element(container string) (nft.Element, bool) {
	e := nft.Element{Proto: p.Proto, Host: p.HostIP, HostPort: p.HostPort, Target: p.Target, Owner: container}
	// ::1 is never routed; it is the shim's.
	return e, e.Check() == nil && p.HostIP != netip.IPv6Loopback()
}

// elements are the published ports that the kernel translates or lets through.
func (p parsed) elements(s Sandbox) []nft.Element {
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
			// Several ports of the host may lead to it.
			direct[e] = true
			es = append(es, e)
		}
	}
	return es
}

// direct reports whether ports at an address of the container's are reached
// there.
func (s Sandbox) direct(at netip.Addr) bool {
	for _, e := range s.Endpoints {
		if (e.IPv4.Address.Addr() == at || e.IPv6.Address.Addr() == at) && e.Rules != nil {
			return e.Rules.Direct[nft.FamilyOf(at)]
		}
	}
	return false
}

// gateway is the endpoint that the default route of a family goes by: of those
// with a gateway the one with the highest priority, then the first by its
// network's name, as in Docker. -1 is none.
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

// links are what the sandbox needs of package bridge.
func (s Sandbox) links() (bridge.Sandbox, error) {
	b := bridge.Sandbox{Path: s.Netns}
	gw4, gw6 := s.gateway(false), s.gateway(true)
	for i, e := range s.Endpoints {
		if e.Bridge == "" && e.Link == nil {
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
		l := bridge.Link{Sysctls: sysctls, HostName: e.HostName, Name: e.Name, Bridge: e.Bridge, MAC: mac, MTU: e.MTU, Isolated: e.Isolated}
		if e.Link != nil {
			l.Kind, l.Parent, l.Mode = e.Link.Kind, e.Link.Parent, e.Link.Mode
		}
		for _, a := range []struct {
			Addressing
			routed bool
		}{{e.IPv4, i == gw4}, {e.IPv6, i == gw6}} {
			if !a.Address.IsValid() {
				continue
			}
			l.Addrs = append(l.Addrs, a.Address)
			if a.routed {
				gateway := a.Gateway
				if e.Link != nil && e.Link.Kind == driverIPvlan && e.Link.Mode != "l2" {
					// The parent routes; there is no neighbour to ask.
					gateway = netip.IPv4Unspecified()
					if a.Gateway.Is6() {
						gateway = netip.IPv6Unspecified()
					}
				}
				l.Gateways = append(l.Gateways, gateway)
			}
		}
		if e.Settings != nil && e.Settings.IPAMConfig != nil {
			for _, a := range e.Settings.IPAMConfig.LinkLocalIPs {
				bits := 16
				if a.Is6() {
					bits = 64
				}
				l.Addrs = append(l.Addrs, netip.PrefixFrom(a, bits))
			}
		}
		b.Links = append(b.Links, l)
	}
	return b, nil
}
