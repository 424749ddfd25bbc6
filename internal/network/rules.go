// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"

	"holdfast/internal/network/nft"
)

// Rules are the packet filter options that the daemon had when an endpoint was
// made. The endpoint keeps them when the daemon's options change.
type Rules struct {
	IPv4       bool `json:"ipv4"` // filter and translate: iptables
	IPv6       bool `json:"ipv6"` // the same: ip6tables
	ICC        bool `json:"icc"`
	Masquerade bool `json:"masquerade"`
	// Direct: by family, whether published ports can be reached at the container's
	// own address.
	Direct [2]bool `json:"direct,omitzero"`
}

// rulesOf returns the options of a sandbox. A sandbox of a release that did not
// store them has the daemon's current options.
func (p *parsed) rulesOf(s Sandbox) Rules {
	for _, e := range s.Endpoints {
		if e.Rules != nil {
			return *e.Rules
		}
	}
	return Rules{IPv4: p.Iptables, IPv6: p.Ip6tables, ICC: p.ICC, Masquerade: p.IPMasq}
}

// onBridge reports whether the sandbox has an interface on a bridge.
func (s Sandbox) onBridge() bool {
	for _, e := range s.Endpoints {
		if e.Bridge != "" {
			return true
		}
	}
	return false
}

// families reports which families need rules: those that the options enable, and
// those of running containers that were started when the options did.
func (v *inventory) families() [2]bool {
	f := [2]bool{v.opts.Iptables, v.opts.Ip6tables}
	for _, s := range v.sandboxes {
		if s.onBridge() {
			r := v.opts.rulesOf(s)
			f[0], f[1] = f[0] || r.IPv4, f[1] || r.IPv6
		}
	}
	return f
}

// except reports whether an endpoint keeps other rules than its bridge has now.
func (t traits) except(e Endpoint) bool {
	return e.Bridge != "" && e.Rules != nil && (e.Rules.ICC != t.icc || e.Rules.Masquerade != t.masq)
}

// exceptions returns the container addresses on a bridge that keep other rules
// than the bridge has now.
func (v *inventory) exceptions(b wanted) []nft.Exception {
	var out []nft.Exception
	for _, s := range v.sandboxes {
		for _, e := range s.Endpoints {
			if e.Bridge != b.Name || !b.except(e) {
				continue
			}
			for _, a := range []netip.Prefix{e.IPv4.Address, e.IPv6.Address} {
				if a.IsValid() {
					out = append(out, nft.Exception{Addr: a.Addr(), ICC: e.Rules.ICC, Masquerade: e.Rules.Masquerade})
				}
			}
		}
	}
	return out
}

// excepted reports whether a sandbox has an endpoint that is an exception.
func (v *inventory) excepted(s Sandbox) bool {
	for _, b := range v.bridges() {
		for _, e := range s.Endpoints {
			if b.Name == e.Bridge && b.except(e) {
				return true
			}
		}
	}
	return false
}
