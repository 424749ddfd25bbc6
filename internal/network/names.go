// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"
	"os"
	"slices"

	"holdfast/internal/network/bridge"
)

// NameServer is the address at which containers on user-defined networks find the
// name server.
var NameServer = bridge.NameServer

// Named reports whether a sandbox has a name server, which is so if it is on a
// user-defined network. The default network has none, as in Docker.
func (s Sandbox) Named() bool {
	return s.Netns != "" && !s.Shared && slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return !predefined(e.Network) })
}

// Reaches reports whether a sandbox has a network with a gateway.
func (s Sandbox) Reaches() bool { return s.gateway(false) >= 0 || s.gateway(true) >= 0 }

// ListenNames opens the sockets of a sandbox's name server, after Join: one for
// UDP, one for TCP. The caller closes them.
func (m *Manager) ListenNames(s Sandbox) (udp, tcp *os.File, err error) {
	return bridge.ListenNames(s.Netns)
}

// Subnets returns the subnets of a network if only its containers are in them. On
// an interface of the host there are other machines, so the result is empty then.
func (reg *registry) Subnets(ref string) []netip.Prefix {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n, err := reg.inv.lookup(ref)
	if err != nil || n.hasParent() && !n.Internal {
		return nil
	}
	var out []netip.Prefix
	for _, s := range n.Subnets {
		out = append(out, s.Prefix)
	}
	return out
}
