package network

import (
	"net/netip"
	"os"
	"slices"

	"holdfast/internal/network/bridge"
)

// NameServer is where containers on networks of the user's own find names.
var NameServer = bridge.NameServer

// Named reports whether a sandbox has a name server: whether it is on a network
// of the user's own. The default network has none, as in Docker.
func (s Sandbox) Named() bool {
	return s.Netns != "" && !s.Shared && slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return !predefined(e.Network) })
}

// Reaches reports whether a sandbox has a network that leads out.
func (s Sandbox) Reaches() bool { return s.gateway(false) >= 0 || s.gateway(true) >= 0 }

// ListenNames makes the sockets of a sandbox's name server, after Join: one for
// UDP, one for TCP. They are the caller's.
func (m *Manager) ListenNames(s Sandbox) (udp, tcp *os.File, err error) {
	return bridge.ListenNames(s.Netns)
}

// Subnets are those of a network that nobody but its containers is in: on an
// interface of the host's there are other machines.
func (m *Manager) Subnets(ref string) []netip.Prefix {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup(ref)
	if err != nil || n.isLink() && !n.Internal {
		return nil
	}
	var out []netip.Prefix
	for _, s := range n.Subnets {
		out = append(out, s.Prefix)
	}
	return out
}
