// SPDX-License-Identifier: Apache-2.0

// Package nft is the engine's packet filter as data: which chains, rules and
// maps there are for a set of bridges, and how they read. It is pure. Render
// gives the text that nft(8) would list, which golden files keep; the package
// firewall puts exactly the same Ruleset into the kernel.
//
// There is one table, of family inet, and no rule elsewhere is touched.
// Published ports are elements of maps, so that neither the cost of a packet
// nor of publishing grows with their number:
//
//	publish4      host address . protocol . host port → container address . port
//	publish_any4  protocol . host port → container address . port
//
// and the same for IPv6. Where a network lets some reach its containers' own
// addresses, a set says on which ports:
//
//	direct4       container address . protocol . container port
//
// What the rules promise is in docs/networking-rules.md.
package nft

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// Config is the input from which the rules are built.
type Config struct {
	Table   string
	Bridges []Bridge
	// IPv4 and IPv6 are the families that the engine filters and translates.
	// Packets of the other family pass unchanged.
	IPv4, IPv6 bool
	Elements   []Element
	// Direct: published ports of all bridges can be reached at the containers' own
	// addresses, but not from other bridges.
	Direct bool
	// Rest says how forwarded packets are treated that concern no bridge.
	Rest Rest
}

// Access says how containers are reached from outside their bridge.
type Access int

// Accesses, named after Docker's gateway modes.
const (
	// NAT: only published ports, at the host's addresses.
	NAT Access = iota
	// Routed: only published ports, at the containers' own addresses.
	Routed
	// Open (nat-unprotected): as NAT, and additionally all ports at the containers'
	// own addresses, from other hosts and from other bridges, as in Docker.
	Open
)

// Bridge is a bridge with containers.
type Bridge struct {
	Name    string
	Subnets []netip.Prefix
	// ICC: containers of the bridge may communicate with each other.
	ICC bool
	// Masquerade: packets that leave the subnets get the host's address.
	Masquerade bool
	// Internal: nothing is forwarded from the bridge to another interface.
	Internal bool
	// Access by family.
	Access [2]Access
	// Trusted are interfaces of the host from which published ports can be reached
	// at the containers' own addresses.
	Trusted []string
	// Source, by family, is the source address of packets that leave the subnets,
	// in place of the address of the interface that they leave by. Zero means none.
	Source [2]netip.Addr
	// Exceptions are containers of the bridge that ICC and Masquerade don't apply
	// to.
	Exceptions []Exception
	// LegacyLinks let containers of the bridge reach ports of other containers, whatever
	// ICC says.
	LegacyLinks []LegacyLink
}

// LegacyLink lets one container reach a port of another.
type LegacyLink struct {
	From, To netip.Addr
	Proto    string // tcp, udp or sctp
	Port     uint16
}

func (l LegacyLink) rule(bridge string) Rule {
	return Rule{
		Interface{Name: bridge}, Address{Source: true, Prefix: netip.PrefixFrom(l.From, l.From.BitLen())},
		Address{Prefix: netip.PrefixFrom(l.To, l.To.BitLen())}, Port{l.Proto, l.Port}, accept,
	}
}

// Exception is a container's address with the values that apply instead.
type Exception struct {
	Addr            netip.Addr
	ICC, Masquerade bool
}

// Ruleset is a table.
type Ruleset struct {
	Table  string
	Maps   []Map
	Chains []Chain
}

// Map maps the address and port of a client's packet to the container's.
type Map struct {
	Name string
	V6   bool
	// Set: it only has keys.
	Set bool
	// Addr: the key begins with the host's address. Otherwise the map is for ports
	// that are published on all addresses.
	Addr     bool
	Elements []Element
}

// Chain is a list of rules. It is attached to a hook if Hook is not empty.
type Chain struct {
	Name     string
	Type     string // filter or nat
	Hook     string // prerouting, output, forward, postrouting
	Priority int
	Rules    []Rule
}

// Rule is a list of expressions, the last of them a verdict or a statement.
type Rule []Expr

// Fingerprint identifies the rule by its text. It is stored with the rule in the
// kernel, and shows whether a chain still has the right rules.
func (r Rule) Fingerprint() [8]byte {
	h := fnv.New64a()
	h.Write([]byte(r.String()))
	var f [8]byte
	h.Sum(f[:0])
	return f
}

// Expr is a part of a rule. String returns it in nft's syntax.
type Expr interface{ String() string }

// The expressions that rules are made of.
type (
	// Interface matches the name of the interface that a packet arrives by or, with
	// Out, leaves by.
	Interface struct {
		Out, Not bool
		Name     string
	}
	// Address matches a packet's source or destination.
	Address struct {
		Source bool
		Prefix netip.Prefix
	}
	// Family matches packets of IPv4 or IPv6.
	Family struct{ V6 bool }
	// DaddrLocal matches packets to one of the host's own addresses.
	DaddrLocal struct{}
	// Known matches packets of connections that are established or related.
	Known struct{}
	// Translated matches packets of connections whose destination was
	// translated.
	Translated struct{}
	// Translate sends the packet to the map's value. A packet that is not in the
	// map goes on to the next rule.
	Translate struct{ Map Map }
	// In matches packets to a container's address and port that are in the set.
	In struct{ Set Map }
	// ICMP matches packets of that protocol.
	ICMP struct{ V6 bool }
	// Group matches the group of the interface that a packet arrives by or, with
	// Out, leaves by. BridgeGroup is the group of engines' bridges.
	Group struct {
		Out    bool
		Number uint32
	}
	// Port matches packets to a port.
	Port struct {
		Proto string // tcp, udp or sctp
		Num   uint16
	}
	// Masquerade sets the packet's source to the address of the interface that it
	// leaves by.
	Masquerade struct{}
	// Source sets the packet's source address.
	Source struct{ Addr netip.Addr }
	// Counter counts the packets that reach it, as readers of iptables rules
	// expect.
	Counter struct{}
	// Verdict ends the rule: accept, drop, return, or jump with a chain.
	Verdict struct {
		Kind  string
		Chain string
	}
)

// Priorities of hooks, of the kernel's enum nf_ip_hook_priorities.
const (
	prioRaw    = -300
	prioDstNAT = -100
	prioFilter = 0
	prioSrcNAT = 100
)

var (
	accept      = Verdict{Kind: "accept"}
	drop        = Verdict{Kind: "drop"}
	loopback4   = netip.MustParsePrefix("127.0.0.0/8")
	loopback6   = netip.MustParsePrefix("::1/128")
	publishMaps = []Map{
		{Name: "publish4", Addr: true},
		{Name: "publish_any4"},
		{Name: "publish6", V6: true, Addr: true},
		{Name: "publish_any6", V6: true},
	}
	directSets = []Map{
		{Name: "direct4", Addr: true, Set: true},
		{Name: "direct6", Addr: true, Set: true, V6: true},
	}
)

// siblings is the chain that drops packets from another bridge of the engine.
const siblings = "siblings"

// source returns the expression that sets the source of packets that leave the
// bridge with an address of that family.
func (b Bridge) source(family int) Expr {
	if a := b.Source[family]; a.IsValid() {
		return Source{a}
	}
	return Masquerade{}
}

func jump(chain string) Verdict { return Verdict{Kind: "jump", Chain: chain} }

// Build returns the rules for c.
func Build(c Config) Ruleset {
	rs := Ruleset{Table: c.Table}
	wanted := publishMaps
	if c.direct() {
		wanted = slices.Concat(publishMaps, directSets)
	}
	for _, m := range wanted {
		if m.V6 && c.IPv6 || !m.V6 && c.IPv4 {
			for _, e := range c.Elements {
				if e.mapName() == m.Name {
					m.Elements = append(m.Elements, e)
				}
			}
			sort.Slice(m.Elements, func(i, j int) bool { return m.Elements[i].less(m.Elements[j]) })
			rs.Maps = append(rs.Maps, m)
		}
	}
	bridges := append([]Bridge(nil), c.Bridges...)
	sort.Slice(bridges, func(i, j int) bool { return bridges[i].Name < bridges[j].Name })

	// route_localnet is set on the bridges, so that a container can answer for the
	// host's own 127.0.0.1. This chain keeps other machines on a bridge or on the
	// host's interface from reaching what listens, or is published, on 127.0.0.1 only,
	// and from using loopback source addresses. It comes before connection
	// tracking, where answers still carry the host's address. IPv6 needs no such
	// chain: the kernel drops ::1 from outside before any hook. Every packet passes
	// here, so the comparison that most packets fail comes first.
	if c.IPv4 {
		rs.Chains = append(rs.Chains, Chain{
			Name: "guard", Type: "filter", Hook: "prerouting", Priority: prioRaw,
			Rules: []Rule{
				{Address{Prefix: loopback4}, Interface{Not: true, Name: "lo"}, drop},
				{Address{Source: true, Prefix: loopback4}, Interface{Not: true, Name: "lo"}, drop},
			},
		})
	}

	publish := Chain{Name: "publish"}
	for _, m := range rs.Maps {
		if m.Set {
			continue
		}
		if m.V6 && m.Addr {
			// ::1 can't be routed to a bridge; the shim answers it.
			publish.Rules = append(publish.Rules, Rule{Address{Prefix: loopback6}, Verdict{Kind: "return"}})
		}
		m.Elements = nil
		publish.Rules = append(publish.Rules, Rule{Translate{m}})
	}
	rs.Chains = append(rs.Chains, publish)
	for _, hook := range []string{"prerouting", "output"} {
		rs.Chains = append(rs.Chains, Chain{
			Name: hook, Type: "nat", Hook: hook, Priority: prioDstNAT,
			Rules: []Rule{{DaddrLocal{}, jump(publish.Name)}},
		})
	}

	// Most packets belong to known connections, so they come first. Only the rules
	// that keep internal networks closed come before them. The rules after it are
	// evaluated once per connection, however many bridges there are.
	forward := Chain{Name: "forward", Type: "filter", Hook: "forward", Priority: prioFilter}
	for _, b := range bridges {
		if b.Internal {
			forward.Rules = append(forward.Rules, Rule{Interface{Name: b.Name}, Interface{Out: true, Not: true, Name: b.Name}, drop})
		}
	}
	forward.Rules = append(forward.Rules, Rule{Known{}, accept})
	postrouting := Chain{Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: prioSrcNAT}
	other := Chain{Name: siblings}
	for _, b := range bridges {
		to := Chain{Name: "to-" + b.Name}
		if !c.IPv4 {
			to.Rules = append(to.Rules, Rule{Family{}, accept})
		}
		if !c.IPv6 {
			to.Rules = append(to.Rules, Rule{Family{V6: true}, accept})
		}
		to.Rules = append(to.Rules, Rule{Translated{}, accept})
		legacyLinks := slices.Clone(b.LegacyLinks)
		slices.SortFunc(legacyLinks, func(x, y LegacyLink) int { return strings.Compare(x.rule(b.Name).String(), y.rule(b.Name).String()) })
		for _, l := range slices.Compact(legacyLinks) {
			if c.filters()[FamilyOf(l.To)] {
				to.Rules = append(to.Rules, l.rule(b.Name))
			}
		}
		exceptions := b.exceptions(c)
		together, isolated := exceptICC(b, exceptions)
		to.Rules = append(to.Rules, together...)
		if len(isolated.Rules) > 0 {
			rs.Chains = append(rs.Chains, isolated)
		}
		if b.ICC {
			to.Rules = append(to.Rules, Rule{Interface{Name: b.Name}, accept})
		}
		reached, fromSiblings := c.reach(b)
		if fromSiblings && other.Rules == nil {
			for _, o := range bridges {
				other.Rules = append(other.Rules, Rule{Interface{Name: o.Name}, drop})
			}
			rs.Chains = append(rs.Chains, other)
		}
		to.Rules = append(to.Rules, reached...)
		to.Rules = append(to.Rules, Rule{drop})
		rs.Chains = append(rs.Chains, to)
		forward.Rules = append(forward.Rules, Rule{Interface{Out: true, Name: b.Name}, jump(to.Name)})

		// A container that reaches a published port of its own bridge, and a
		// connection from the host's 127.0.0.1, must be answered through the host,
		// which reverts the translation.
		if c.IPv4 {
			postrouting.Rules = append(postrouting.Rules,
				Rule{Interface{Out: true, Name: b.Name}, Address{Source: true, Prefix: loopback4}, Masquerade{}})
		}
		postrouting.Rules = append(postrouting.Rules, exceptMasquerade(b, exceptions)...)
		subnets := append([]netip.Prefix(nil), b.Subnets...)
		sort.Slice(subnets, func(i, j int) bool { return subnets[i].Addr().Less(subnets[j].Addr()) })
		for _, s := range subnets {
			if s.Addr().Is4() && !c.IPv4 || s.Addr().Is6() && !c.IPv6 {
				continue
			}
			from := Address{Source: true, Prefix: s.Masked()}
			postrouting.Rules = append(postrouting.Rules,
				Rule{Interface{Out: true, Name: b.Name}, from, Translated{}, Masquerade{}})
			if family := FamilyOf(s.Addr()); b.Masquerade && !b.Internal && b.Access[family] != Routed {
				postrouting.Rules = append(postrouting.Rules,
					Rule{Interface{Out: true, Not: true, Name: b.Name}, from, b.source(family)})
			}
		}
	}
	rs.Chains = append(rs.Chains, forward, postrouting)
	if rest, refuses := c.rest(bridges); refuses {
		rs.Chains = append(rs.Chains, rest)
	}
	return rs
}
