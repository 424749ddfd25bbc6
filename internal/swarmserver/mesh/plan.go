// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"holdfast/internal/network/overlay"
	"holdfast/internal/network/swarmlb"
	"holdfast/internal/shim/names"
)

// What follows is computed from the records of a network, without any state.

// nameTTL is for how long a client may keep the answer to a name of the swarm, in
// seconds. Tasks come and go, so it is short.
const nameTTL = 5

// member is an endpoint on a network, of this node or of another one.
type member struct {
	Endpoint endpointRecord // with an empty Name while it can't be used yet
	Peer     peerRecord
}

// peersOf returns what the kernel has to know of other hosts' endpoints. local are the
// addresses of this host's own, and tunnel is its own end of the tunnels.
func peersOf(members []member, local map[string]bool, tunnel string) (peers []overlay.Peer) {
	for _, m := range members {
		addr, err := parseAddr(m.Peer.EndpointIP)
		host, herr := netip.ParseAddr(m.Peer.TunnelEndpointIP)
		mac, merr := overlay.ParseMAC(m.Peer.EndpointMAC)
		if err != nil || herr != nil || merr != nil || local[addr.String()] || m.Peer.TunnelEndpointIP == tunnel {
			continue
		}
		peers = append(peers, overlay.Peer{Addr: addr, MAC: mac, Host: host})
	}
	return peers
}

// parseAddr reads an address, with or without the length of its subnet.
func parseAddr(text string) (netip.Addr, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr(), nil
	}
	return netip.ParseAddr(text)
}

// which tasks are behind an address or a port.
type which bool

const (
	// serve: those that get new connections.
	serve which = false
	// keep: also those that are about to end, which keep the connections that they have.
	keep which = true
)

// servicesOf returns the virtual addresses of a network with the tasks behind them.
func servicesOf(members []member, w which) (services []swarmlb.Service) {
	byVIP := map[netip.Addr]*swarmlb.Service{}
	for _, m := range members {
		vip, err := parseAddr(m.Endpoint.VirtualIP)
		if err != nil {
			continue
		}
		if byVIP[vip] == nil {
			byVIP[vip] = &swarmlb.Service{VIP: vip}
		}
		// A service whose tasks are all about to end keeps its address, which refuses connections.
		if addr, err := parseAddr(m.Endpoint.EndpointIP); err == nil && (w == keep || !m.Endpoint.Disabled) && !slices.Contains(byVIP[vip].Backends, addr) {
			byVIP[vip].Backends = append(byVIP[vip].Backends, addr)
		}
	}
	for _, s := range byVIP {
		slices.SortFunc(s.Backends, netip.Addr.Compare)
		services = append(services, *s)
	}
	slices.SortFunc(services, func(a, b swarmlb.Service) int { return a.VIP.Compare(b.VIP) })
	return services
}

// namesOf returns the names on a network: services, by their virtual address or by
// those of their tasks, all tasks of a service as tasks.SERVICE, and containers.
func namesOf(d overlay.Definition, members []member) names.Network {
	n := names.Network{Schema: names.Schema, Name: d.Name, TTL: nameTTL, Members: []names.Member{}}
	for _, s := range d.Subnets {
		n.Subnets = append(n.Subnets, s.Prefix.String())
	}
	if d.Ingress {
		return n // as in Docker, no name resolves on the network of the routing mesh
	}
	services := map[string]*names.Member{}
	tasks := map[string]*names.Member{}
	var containers []names.Member
	for _, m := range members {
		e := m.Endpoint
		addr, err := parseAddr(e.EndpointIP)
		if err != nil || e.Name == "" {
			continue
		}
		if !e.Disabled {
			containers = append(containers, names.Member{Name: e.Name, Names: e.TaskAliases, Addresses: []string{addr.String()}})
		}
		if e.Service == "" {
			continue
		}
		if services[e.Service] == nil {
			services[e.Service] = &names.Member{Name: e.Service}
			tasks[e.Service] = &names.Member{Name: "tasks." + e.Service}
		}
		s, all := services[e.Service], tasks[e.Service]
		for _, a := range e.Aliases {
			s.Names, all.Names = withName(s.Names, a), withName(all.Names, "tasks."+a)
		}
		if vip, err := parseAddr(e.VirtualIP); err == nil {
			s.Addresses = withName(s.Addresses, vip.String())
		} else if !e.Disabled {
			s.Addresses = withName(s.Addresses, addr.String())
		}
		if !e.Disabled {
			all.Addresses = withName(all.Addresses, addr.String())
		}
	}
	// The container comes last, because an address is shown under its last name.
	for _, group := range []map[string]*names.Member{services, tasks} {
		for _, m := range group {
			slices.Sort(m.Names)
			slices.Sort(m.Addresses)
			n.Members = append(n.Members, *m)
		}
	}
	byName := func(a, b names.Member) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(n.Members, byName)
	slices.SortFunc(containers, byName)
	n.Members = append(n.Members, containers...)
	return n
}

// entriesOf are the nodes on the network of the routing mesh, which are members
// without a name. So are tasks that are not healthy yet, such as the one at self.
func entriesOf(members []member, self netip.Addr) (entries []swarmlb.Entry) {
	for _, m := range members {
		addr, err := parseAddr(m.Peer.EndpointIP)
		mac, merr := overlay.ParseMAC(m.Peer.EndpointMAC)
		if err == nil && merr == nil && m.Endpoint.Name == "" && addr != self {
			entries = append(entries, swarmlb.Entry{Addr: addr, MAC: mac})
		}
	}
	return entries
}

// portsOf are the ports that the routing mesh publishes, with the tasks behind them.
func portsOf(members []member, w which) (ports []swarmlb.IngressPort) {
	type key struct {
		proto string
		port  uint16
	}
	all := map[key][]netip.AddrPort{}
	for _, m := range members {
		addr, err := parseAddr(m.Endpoint.EndpointIP)
		if err != nil {
			continue
		}
		for _, p := range m.Endpoint.Ports {
			if int(p.Protocol) >= len(protocols) || p.Published == 0 || p.Published > 65535 || p.Target == 0 || p.Target > 65535 {
				continue
			}
			k := key{protocols[p.Protocol], uint16(p.Published)}
			if _, there := all[k]; !there {
				all[k] = nil
			}
			if to := netip.AddrPortFrom(addr, uint16(p.Target)); (w == keep || !m.Endpoint.Disabled) && !slices.Contains(all[k], to) {
				all[k] = append(all[k], to)
			}
		}
	}
	for k, targets := range all {
		slices.SortFunc(targets, netip.AddrPort.Compare)
		ports = append(ports, swarmlb.IngressPort{Proto: k.proto, Port: k.port, Targets: targets})
	}
	slices.SortFunc(ports, func(a, b swarmlb.IngressPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Proto, b.Proto))
	})
	return ports
}

var protocols = []string{"tcp", "udp", "sctp"}

// withRemoved adds the services that were there before, without tasks: connections to
// them lead to nothing any more.
func withRemoved(now, before []swarmlb.Service) []swarmlb.Service {
	for _, b := range before {
		if !slices.ContainsFunc(now, func(n swarmlb.Service) bool { return n.VIP == b.VIP }) {
			now = append(now, swarmlb.Service{VIP: b.VIP})
		}
	}
	return now
}

// withRemovedPorts is withRemoved for published ports.
func withRemovedPorts(now, before []swarmlb.IngressPort) []swarmlb.IngressPort {
	for _, b := range before {
		if !slices.ContainsFunc(now, func(n swarmlb.IngressPort) bool { return n.Proto == b.Proto && n.Port == b.Port }) {
			now = append(now, swarmlb.IngressPort{Proto: b.Proto, Port: b.Port})
		}
	}
	return now
}

func withName(list []string, name string) []string {
	if name == "" || slices.Contains(list, name) {
		return list
	}
	return append(list, name)
}
