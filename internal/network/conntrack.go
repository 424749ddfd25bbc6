// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
)

// forgetFlows removes the connection tracking entries of the sandbox's udp ports.
// A udp flow has no end: a client that goes on sending would for ever reach the
// target that the port had before. Flows to the targets that the ports have now
// stay if the ports are published. Without udp ports nothing is listed.
func (p *parsed) forgetFlows(s Sandbox, published bool) error {
	ports := map[uint16]bool{}
	for _, p := range s.Ports {
		if p.Proto == "udp" && p.HostPort != 0 {
			ports[p.HostPort] = true
		}
	}
	if len(ports) == 0 || !p.rulesOf(s).IPv4 && !p.rulesOf(s).IPv6 {
		return nil
	}
	f := staleFlows{ports: ports, targets: map[netip.AddrPort]bool{}}
	for _, p := range s.Ports {
		if published && p.Proto == "udp" {
			f.targets[p.Target] = true
		}
	}
	return bridge.ForgetFlows(f)
}

// staleFlows matches the flows that lead from the ports to other addresses than
// the targets.
type staleFlows struct {
	ports   map[uint16]bool
	targets map[netip.AddrPort]bool
}

func (f staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP || !f.ports[flow.Forward.DstPort] {
		return false
	}
	to, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return ok && !f.targets[netip.AddrPortFrom(to.Unmap(), flow.Reverse.SrcPort)]
}
