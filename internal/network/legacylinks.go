// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/nft"
)

// A legacy link on the default network lets a container reach the exposed ports of
// another container even if inter-container communication (icc) is off. A bridge
// with isolated ports passes no frames between them. So the host answers ARP and
// neighbour requests for the other container's address and routes the packets,
// and the rules decide which pass.

// ApplyLegacyLinks applies the current legacy links of a running container's sandbox.
func (m *Manager) ApplyLegacyLinks(ctx context.Context, s Sandbox) error {
	defer m.repairs.suspend()()
	m.updateSandbox(s)
	return m.Sync(ctx)
}

// hasLegacyLinks reports whether legacy links of a container, or
// to it, need rules.
func (v *inventory) hasLegacyLinks(s Sandbox) bool {
	if len(v.legacyLinks(s)) > 0 {
		return true
	}
	for _, other := range v.sandboxes {
		if slices.Contains(other.LegacyLinks, s.Container) && len(v.legacyLinks(other)) > 0 {
			return true
		}
	}
	return false
}

// legacyLinks returns the rules that a sandbox's legacy links need.
func (v *inventory) legacyLinks(s Sandbox) (out []nft.LegacyLink) {
	from, ok := onDefault(s)
	if !ok {
		return nil
	}
	for _, id := range s.LegacyLinks {
		other := v.sandboxes[id]
		to, ok := onDefault(other)
		// Without a container that was started with icc off, all reach each other
		// anyway.
		if !ok || to.Bridge != from.Bridge || icc(from) && icc(to) {
			continue
		}
		for _, p := range other.Exposed {
			for _, a := range [][2]netip.Prefix{{from.IPv4.Address, to.IPv4.Address}, {from.IPv6.Address, to.IPv6.Address}} {
				if a[0].IsValid() && a[1].IsValid() {
					out = append(out, nft.LegacyLink{From: a[0].Addr(), To: a[1].Addr(), Proto: string(p.Proto()), Port: p.Num()})
				}
			}
		}
	}
	return out
}

func onDefault(s Sandbox) (Endpoint, bool) {
	i := slices.IndexFunc(s.Endpoints, func(e Endpoint) bool { return e.Network == network.NetworkBridge && e.Bridge != "" })
	if i < 0 {
		return Endpoint{}, false
	}
	return s.Endpoints[i], true
}

func icc(e Endpoint) bool { return e.Rules == nil || e.Rules.ICC }

// answerForNeighbours makes the host answer for the addresses of a bridge's
// containers if the bridge's ports are isolated, because legacy links need it then.
func answerForNeighbours(s Sandbox) error {
	e, ok := onDefault(s)
	if !ok || !e.Isolated {
		return nil
	}
	return bridge.AnswerForNeighbours(e.Bridge)
}
