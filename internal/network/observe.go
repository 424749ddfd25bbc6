// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/nft"
)

// observe builds a Sandbox from the kernel's state for a container whose record
// can't be read, so that its addresses, interfaces and ports are kept like those
// of other containers. ok is false if the kernel has nothing of the container.
func (m *Manager) observe(id string, ports map[string]bridge.Port, published []nft.Element) (s Sandbox, ok bool, err error) {
	s = Sandbox{Schema: SandboxSchema, ID: randomID(), Container: id, Mode: "bridge", Netns: m.opts.netnsPath(id)}
	if !bridge.IsNamespace(s.Netns) {
		return s, false, nil
	}
	inside, err := bridge.Look(s.Netns)
	if err != nil {
		return s, false, err
	}
	byIndex := map[int]bridge.Port{}
	for _, p := range ports {
		byIndex[p.Index] = p
	}
	for _, in := range inside {
		p, there := byIndex[in.Peer]
		if !there {
			continue
		}
		e := Endpoint{ID: randomID(), Bridge: p.Bridge, HostName: p.Name, Name: in.Name, MAC: in.MAC, MTU: in.MTU}
		e.Network, e.NetworkID = m.networkOfBridge(p.Bridge)
		for _, a := range in.Addrs {
			if a.Addr().Is4() {
				e.IPv4.Address = a
			} else {
				e.IPv6.Address = a
			}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	for _, e := range published {
		switch {
		case e.Owner != id:
		case e.Direct():
			s.Ports = append(s.Ports, PortMapping{
				Proto: e.Proto, ContainerPort: e.HostPort, HostIP: anyOf(e.Host), Target: netip.AddrPortFrom(e.Host, e.HostPort),
			})
		default:
			s.Ports = append(s.Ports, PortMapping{
				Proto: e.Proto, ContainerPort: e.Target.Port(), HostIP: e.Host, HostPort: e.HostPort, Target: e.Target,
			})
		}
	}
	return s, true, nil
}
