package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetFlows removes what connection tracking remembers of the sandbox's udp
// ports. A flow of udp has no end: a client that goes on sending would reach
// for ever what the port led to before. Without udp ports nothing is listed.
func (m *Manager) forgetFlows(s Sandbox) error {
	ports := map[uint16]bool{}
	for _, p := range s.Ports {
		if p.Proto == "udp" && p.HostPort != 0 {
			ports[p.HostPort] = true
		}
	}
	if len(ports) == 0 || !m.opts.rulesOf(s).IPv4 && !m.opts.rulesOf(s).IPv6 {
		return nil
	}
	f := staleFlows{ports: ports, targets: map[netip.AddrPort]bool{}}
	m.mu.Lock()
	live := m.published[s.Container]
	m.mu.Unlock()
	for _, p := range s.Ports {
		if live && p.Proto == "udp" {
			f.targets[p.Target] = true
		}
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		var err error
		for range 100 {
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
				break // else the table changed while it was read: some may be left
			}
		}
		if err != nil {
			return fmt.Errorf("connection tracking: %w", err)
		}
	}
	return nil
}

// staleFlows matches flows to the ports that don't lead to the targets.
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
