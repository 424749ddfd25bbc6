// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"
	"slices"
)

// exceptions returns the exceptions of the filtered families, sorted by address.
func (b Bridge) exceptions(c Config) []Exception {
	var out []Exception
	for _, e := range b.Exceptions {
		if e.Addr.Is4() && c.IPv4 || e.Addr.Is6() && c.IPv6 {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Exception) int { return a.Addr.Compare(b.Addr) })
	return out
}

func (e Exception) address(source bool) Address {
	return Address{Source: source, Prefix: netip.PrefixFrom(e.Addr, e.Addr.BitLen())}
}

// exceptICC returns the rules for the exceptions, which come before the bridge's
// own. Two containers may communicate if either of them may. So on a bridge with
// icc off an exception communicates with all containers. On a bridge with icc on
// the exceptions are only kept from each other, by a chain of their own.
func exceptICC(b Bridge, all []Exception) (rules []Rule, isolated Chain) {
	isolated.Name = "isolated-" + b.Name
	for _, e := range all {
		switch {
		case e.ICC == b.ICC:
		case e.ICC:
			rules = append(rules,
				Rule{Interface{Name: b.Name}, e.address(true), accept},
				Rule{Interface{Name: b.Name}, e.address(false), accept})
		default:
			rules = append(rules, Rule{Interface{Name: b.Name}, e.address(true), jump(isolated.Name)})
			isolated.Rules = append(isolated.Rules, Rule{e.address(false), drop})
		}
	}
	return rules, isolated
}

// exceptMasquerade returns the rules for the exceptions, which come before those
// of the subnets.
func exceptMasquerade(b Bridge, all []Exception) []Rule {
	var rules []Rule
	for _, e := range all {
		if e.Masquerade == b.Masquerade {
			continue
		}
		rule := Rule{Interface{Out: true, Not: true, Name: b.Name}, e.address(true), accept}
		if e.Masquerade {
			rule[2] = b.source(FamilyOf(e.Addr))
		}
		rules = append(rules, rule)
	}
	return rules
}
