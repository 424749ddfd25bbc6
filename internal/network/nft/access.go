// SPDX-License-Identifier: Apache-2.0

package nft

import "net/netip"

// FamilyOf returns 0 for IPv4 and 1 for IPv6. It is the index of arrays by
// family.
func FamilyOf(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// filters reports, by family, whether the engine filters it.
func (c Config) filters() [2]bool { return [2]bool{c.IPv4, c.IPv6} }

// direct reports whether any rule needs the sets of directly reachable ports.
func (c Config) direct() bool {
	if c.Direct {
		return true
	}
	for _, b := range c.Bridges {
		if len(b.Trusted) > 0 || b.Access[0] == Routed || b.Access[1] == Routed {
			return true
		}
	}
	return false
}

// reach returns the rules by which containers of a bridge are reached at their
// own addresses. fromSiblings reports whether they jump to the chain siblings.
func (c Config) reach(b Bridge) (rules []Rule, fromSiblings bool) {
	if b.Internal {
		return nil, false
	}
	elsewhere := Interface{Not: true, Name: b.Name}
	var behind []Rule // rules after the jump that drops packets from other bridges
	for v, on := range c.filters() {
		if !on {
			continue
		}
		published := In{directSets[v]}
		switch {
		case b.Access[v] == Routed:
			rules = append(rules,
				Rule{elsewhere, ICMP{v == 1}, accept},
				Rule{elsewhere, published, accept})
			continue
		case b.Access[v] == Open:
			rules = append(rules, Rule{elsewhere, Family{v == 1}, accept})
			continue
		case c.Direct:
			behind = append(behind, Rule{published, accept})
		}
		for _, name := range b.Trusted {
			rules = append(rules, Rule{Interface{Name: name}, published, accept})
		}
	}
	if len(behind) > 0 {
		rules = append(rules, Rule{jump(siblings)})
	}
	return append(rules, behind...), len(behind) > 0
}
