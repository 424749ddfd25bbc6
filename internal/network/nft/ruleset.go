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
)

// Config is what the rules follow from.
type Config struct {
	Table   string
	Bridges []Bridge
	// IPv4 and IPv6 say which families the engine filters and translates;
	// packets of the other are let through untouched.
	IPv4, IPv6 bool
	Elements   []Element
	// Direct: published ports of all bridges can be reached at the containers'
	// own addresses, but not from other bridges.
	Direct bool
}

// Access is how containers are reached from elsewhere.
type Access int

// Accesses, by Docker's names of gateway modes.
const (
	// NAT: only what is published, by the host's addresses.
	NAT Access = iota
	// Routed: published ports, by the containers' own addresses alone.
	Routed
	// Open (nat-unprotected): as NAT, and from other hosts all ports by the
	// containers' own addresses.
	Open
)

// Bridge is a bridge with containers.
type Bridge struct {
	Name    string
	Subnets []netip.Prefix
	// ICC: containers of the bridge may talk to each other.
	ICC bool
	// Masquerade: what leaves the subnets gets the host's address.
	Masquerade bool
	// Internal: nothing is forwarded from the bridge to another interface.
	Internal bool
	// Access, of IPv4 and of IPv6.
	Access [2]Access
	// Trusted are interfaces of the host from which published ports can be
	// reached at the containers' own addresses.
	Trusted []string
	// Source is what leaves the subnets gets in place of the address of the
	// interface that it leaves by, of IPv4 and of IPv6; zero is none.
	Source [2]netip.Addr
	// Exceptions are containers of the bridge that ICC and Masquerade don't
	// hold for.
	Exceptions []Exception
}

// Exception is a container's address with what it has instead.
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

// Map is a map from what a client addressed to where it goes.
type Map struct {
	Name string
	V6   bool
	// Set: it has keys alone.
	Set bool
	// Addr: the key begins with the host's address. Without it the map is for
	// ports that are published on all addresses.
	Addr     bool
	Elements []Element
}

// Chain is a list of rules, and a hook if Hook is not empty.
type Chain struct {
	Name     string
	Type     string // filter or nat
	Hook     string // prerouting, output, forward, postrouting
	Priority int
	Rules    []Rule
}

// Rule is a list of expressions, the last of them a verdict or a statement.
type Rule []Expr

// Fingerprint identifies the rule by its text. It is stored with the rule in
// the kernel, where it tells whether a chain still holds what it should.
func (r Rule) Fingerprint() [8]byte {
	h := fnv.New64a()
	h.Write([]byte(r.String()))
	var f [8]byte
	h.Sum(f[:0])
	return f
}

// Expr is a part of a rule. String gives it in nft's syntax.
type Expr interface{ String() string }

// The expressions that rules are made of.
type (
	// Interface matches the name of the interface that a packet comes in
	// (or, with Out, goes out) by.
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
	// Translate sends the packet where the map says. A packet that is not in
	// the map goes on to the next rule.
	Translate struct{ Map Map }
	// In matches packets to a container's address and port that are in the set.
	In struct{ Set Map }
	// ICMP matches packets of that protocol.
	ICMP struct{ V6 bool }
	// Masquerade gives the packet the address of the interface it leaves by.
	Masquerade struct{}
	// Source gives the packet an address.
	Source struct{ Addr netip.Addr }
	// Counter counts the packets that come to it, as those who read the rules of
	// iptables expect.
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

// siblings drops what comes from another bridge of the engine's.
const siblings = "siblings"

// source gives what leaves the bridge with an address of that family one of the
// host's.
func (b Bridge) source(family int) Expr {
	if a := b.Source[family]; a.IsValid() {
		return Source{a}
	}
	return Masquerade{}
}

func jump(chain string) Verdict { return Verdict{Kind: "jump", Chain: chain} }

// Build gives the rules for c.
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

	// route_localnet is set on the bridges, so that the host's own 127.0.0.1
	// can be answered by a container. Without this chain, whoever sits on a
	// bridge or on the host's link could reach what listens, or is published,
	// on 127.0.0.1 only, or pretend to be one of its loopback addresses. It stands before connection tracking, where answers
	// still carry the host's address. IPv6 needs none: the kernel drops ::1
	// from outside before any hook. All packets pass here, so what nearly all
	// of them differ in is compared first.
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

	// Packets of known connections are nearly all there are. Only what an
	// internal network keeps in comes before them; what follows is looked at
	// once for each connection, however many bridges there are.
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
		exceptions := b.exceptions(c)
		kept, isolated := exceptICC(b, exceptions)
		to.Rules = append(to.Rules, kept...)
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

		// A container that reaches a published port of its own bridge, and the
		// host's 127.0.0.1, must be answered through the host, which knows
		// how to undo the translation.
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
	return rs
}
