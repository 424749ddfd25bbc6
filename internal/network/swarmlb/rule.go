// SPDX-License-Identifier: Apache-2.0

package swarmlb

import (
	"fmt"
	"net/netip"
	"strings"
)

// Rule is a list of expressions, the last of them a statement or a verdict.
type Rule []Expr

// Expr is a part of a rule. String returns it in nft's syntax.
type Expr interface{ String() string }

// The expressions that rules are made of.
type (
	// Interface matches the interface that a packet arrives by or, with Out, leaves
	// by.
	Interface struct {
		Out, Not bool
		Name     string
	}
	// Proto matches a protocol by its number.
	Proto struct{ Number byte }
	// Loopback matches packets to, or with Source from, 127.0.0.0/8.
	Loopback struct{ Source bool }
	// LocalDestination matches packets to one of the namespace's own addresses.
	LocalDestination struct{}
	// NewFlow matches the first packet of a connection.
	NewFlow struct{}
	// Direction matches packets in the direction of the first one of their
	// connection, or replies.
	Direction struct{ Reply bool }
	// Remembered matches packets of connections that have a mark of ours.
	Remembered struct{}
	// RememberSender gives the connection the mark that the map has for the MAC that
	// sent the packet. Other packets go on to the next rule.
	RememberSender struct{ Map string }
	// Remember gives the packet and its connection a mark.
	Remember struct{ Mark uint32 }
	// SetMark gives the packet a mark.
	SetMark struct{ Mark uint32 }
	// RestoreMark gives the packet its connection's mark.
	RestoreMark struct{}
	// NoteClient adds the client of a datagram to the map, with its connection's mark.
	NoteClient struct {
		Map     string
		Seconds int
	}
	// AnswerClient gives a datagram to a client in the map the mark that the map has,
	// and a source address. Other packets go on to the next rule.
	AnswerClient struct {
		Map    string
		Source netip.Addr
	}
	// Dispatch goes to the chain that the map has for the packet's destination address
	// or, with Port, for its protocol and port.
	Dispatch struct {
		Map  string
		Port bool
	}
	// Spread translates the destination to each of the targets in turn. All targets
	// have a port, or none.
	Spread struct{ To []netip.AddrPort }
	// Source translates the source address.
	Source struct{ Addr netip.Addr }
	// Reject refuses a packet by ICMP or, with Reset, by a TCP reset.
	Reject struct{ Reset bool }
	// Drop drops a packet.
	Drop struct{}
)

func (e Interface) String() string {
	return fmt.Sprintf("%s %s%q", choose(e.Out, "oifname", "iifname"), choose(e.Not, "!= ", ""), e.Name)
}

func (e Proto) String() string {
	for name, n := range protocols {
		if n == e.Number {
			return "meta l4proto " + name
		}
	}
	return fmt.Sprintf("meta l4proto %d", e.Number)
}

func (e Loopback) String() string {
	return fmt.Sprintf("ip %s %s", choose(e.Source, "saddr", "daddr"), loopback)
}

func (LocalDestination) String() string { return "fib daddr type local" }
func (NewFlow) String() string          { return "ct state new" }
func (e Direction) String() string      { return "ct direction " + choose(e.Reply, "reply", "original") }

func (Remembered) String() string {
	return fmt.Sprintf("ct mark & 0x%08x == 0x%08x", MarkMask, Mark)
}

func (e RememberSender) String() string { return "ct mark set ether saddr map @" + e.Map }

func (e Remember) String() string {
	return fmt.Sprintf("meta mark set 0x%08x ct mark set meta mark", e.Mark)
}

func (e SetMark) String() string   { return fmt.Sprintf("meta mark set 0x%08x", e.Mark) }
func (RestoreMark) String() string { return "meta mark set ct mark" }

func (e NoteClient) String() string {
	return fmt.Sprintf("update @%s { ip saddr . udp sport . udp dport timeout %ds : ct mark }", e.Map, e.Seconds)
}

func (e AnswerClient) String() string {
	return fmt.Sprintf("meta mark set ip daddr . udp dport . udp sport map @%s ip saddr set %s", e.Map, e.Source)
}

func (e Dispatch) String() string {
	return choose(e.Port, "meta l4proto . th dport", "ip daddr") + " vmap @" + e.Map
}

// WithPorts reports whether the targets have ports.
func (e Spread) WithPorts() bool { return len(e.To) > 0 && e.To[0].Port() != 0 }

func (e Spread) String() string {
	var to []string
	for i, t := range e.To {
		text := t.Addr().String()
		if e.WithPorts() {
			text = fmt.Sprintf("%s . %d", t.Addr(), t.Port())
		}
		to = append(to, fmt.Sprintf("%d : %s", i, text))
	}
	return fmt.Sprintf("dnat %sto numgen inc mod %d map { %s }", choose(e.WithPorts(), "ip addr . port ", ""), len(e.To), strings.Join(to, ", "))
}

func (e Source) String() string { return "snat to " + e.Addr.String() }
func (e Reject) String() string { return "reject" + choose(e.Reset, " with tcp reset", "") }
func (Drop) String() string     { return "drop" }

func (r Rule) String() string {
	var parts []string
	for _, e := range r {
		parts = append(parts, e.String())
	}
	return strings.Join(parts, " ")
}

// String returns the chain as nft lists it.
func (c Chain) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
	if c.Hook != "" {
		fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Type, c.Hook, c.Priority)
	}
	for _, r := range c.Rules {
		fmt.Fprintf(&b, "\t\t%s\n", r)
	}
	b.WriteString("\t}\n")
	return b.String()
}

func (m Map) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tmap %s {\n\t\ttype %s\n", m.Name, m.Type)
	if m.Size > 0 {
		fmt.Fprintf(&b, "\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %ds\n", m.Size, m.Seconds)
	}
	for i, e := range m.Elements {
		b.WriteString(choose(i == 0, "\t\telements = { ", ",\n\t\t\t     ") + e.Text)
	}
	b.WriteString(choose(len(m.Elements) > 0, " }\n", "") + "\t}\n")
	return b.String()
}

// String returns the table as nft lists it.
func (t Table) String() string {
	balanced := t.Balanced
	for _, g := range t.Targets {
		balanced.Elements = append(balanced.Elements, Element{Text: g.Key.Text + " : goto " + g.Chain.Name})
	}
	parts := []string{balanced.String()}
	for _, m := range []Map{t.Marks, t.Clients} {
		if m.Name != "" {
			parts = append(parts, m.String())
		}
	}
	for _, c := range t.Chains {
		parts = append(parts, c.String())
	}
	for _, g := range t.Targets {
		parts = append(parts, g.Chain.String())
	}
	return fmt.Sprintf("table ip %s {\n%s}\n", t.Name, strings.Join(parts, "\n"))
}

func choose(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}
