// SPDX-License-Identifier: Apache-2.0

package nft

import "slices"

// When the engine switches forwarding on, the kernel also forwards between the
// host's other interfaces, which no one asked for. Such packets, which concern no
// bridge, are dropped unless they were allowed before. docs/decisions/0010 says
// how that is determined.

// BridgeGroup is the group of interfaces (ip link) of all engines' bridges. So
// one engine's rules need not name the bridges of other engines on the host.
const BridgeGroup = 0x68666273

// restPriority places the chain after those of other programs, so that its drop
// counter only counts packets that no other program dropped.
const restPriority = prioFilter + 10

// Rest says how forwarded packets are treated that neither come from nor go to a
// bridge of an engine.
type Rest struct {
	// Refused, by family: the packets are dropped, except for known or translated
	// connections and for the following.
	Refused [2]bool
	// Before are, by family, the interfaces whose packets the host forwarded before
	// the engine switched forwarding on.
	Before [2][]string
	// Pass are interfaces of other programs' networks. Those programs filter their
	// traffic with rules of their own.
	Pass []string
	// Within are bridges of other programs. If br_netfilter is loaded, frames
	// between two ports of one bridge pass the forward chains.
	Within []string
}

// accepted returns the rules of the families for what is not dropped.
func (r Rest) accepted(families ...int) []Rule {
	rules := []Rule{{Known{}, accept}, {Translated{}, accept}}
	for _, out := range []bool{false, true} {
		rules = append(rules, Rule{Group{Out: out, Number: BridgeGroup}, accept})
	}
	for _, name := range r.Within {
		rules = append(rules, Rule{Interface{Name: name}, Interface{Out: true, Name: name}, accept})
	}
	for _, name := range r.Pass {
		rules = append(rules, Rule{Interface{Name: name}, accept}, Rule{Interface{Out: true, Name: name}, accept})
	}
	for _, v := range families {
		for _, name := range r.Before[v] {
			rules = append(rules, Rule{Family{v == 1}, Interface{Name: name}, accept})
		}
	}
	return rules
}

// rest returns the chain that drops. refuses is false if there is none.
func (c Config) rest(bridges []Bridge) (chain Chain, refuses bool) {
	chain = Chain{Name: "rest", Type: "filter", Hook: "forward", Priority: restPriority}
	var families []int
	for v, on := range c.filters() {
		if on && c.Rest.Refused[v] {
			families = append(families, v)
		}
	}
	if len(families) == 0 {
		return chain, false
	}
	chain.Rules = c.Rest.accepted(families...)
	for _, b := range bridges {
		chain.Rules = append(chain.Rules, Rule{Interface{Name: b.Name}, accept}, Rule{Interface{Out: true, Name: b.Name}, accept})
	}
	for _, v := range families {
		chain.Rules = append(chain.Rules, Rule{Family{v == 1}, Counter{}, drop})
	}
	return chain, true
}

// Closing turns the chain of Admission into one for a FORWARD chain that accepts
// by default, and drops the rest at its end. Packets that another rule of FORWARD
// accepts do not reach it.
func Closing(c Chain, r Rest, v6 bool) Chain {
	family := 0
	if v6 {
		family = 1
	}
	for i, rule := range c.Rules {
		// In a chain that drops by default, this rule leaves the packet to that
		// default.
		if v, ok := rule[len(rule)-1].(Verdict); ok && v.Kind == "return" {
			c.Rules[i] = append(slices.Clone(rule[:len(rule)-1]), drop)
		}
	}
	for _, rule := range r.accepted(family) {
		// The table has only one family.
		if _, ok := rule[0].(Family); ok {
			rule = rule[1:]
		}
		c.Rules = append(c.Rules, rule)
	}
	c.Rules = append(c.Rules, Rule{Counter{}, drop})
	return c
}
