// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"strconv"
	"strings"
)

// Render returns the ruleset as nft lists it.
func Render(rs Ruleset) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", word(rs.Table))
	sep := ""
	for _, m := range rs.Maps {
		b.WriteString(sep)
		sep = "\n"
		fmt.Fprintf(&b, "\t%s %s {\n\t\ttype %s\n", choose(m.Set, "set", "map"), m.Name, m.Type())
		for i, e := range m.Elements {
			if i == 0 {
				b.WriteString("\t\telements = { ")
			} else {
				b.WriteString(",\n\t\t\t     ")
			}
			b.WriteString(e.String())
		}
		if len(m.Elements) > 0 {
			b.WriteString(" }\n")
		}
		b.WriteString("\t}\n")
	}
	for _, c := range rs.Chains {
		b.WriteString(sep)
		sep = "\n"
		fmt.Fprintf(&b, "\tchain %s {\n", word(c.Name))
		if c.Hook != "" {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %s; policy accept;\n", c.Type, c.Hook, priority(c))
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// priority returns the chain's priority, by name if nft has one for that hook.
func priority(c Chain) string {
	switch {
	case c.Priority == prioRaw:
		return "raw"
	case c.Priority == prioDstNAT && c.Hook == "prerouting":
		return "dstnat"
	case c.Priority == prioFilter:
		return "filter"
	case c.Priority == restPriority:
		return "filter + 10"
	case c.Priority == prioSrcNAT && c.Hook == "postrouting":
		return "srcnat"
	}
	return fmt.Sprint(c.Priority)
}

// Type returns the map's type in nft's syntax.
func (m Map) Type() string {
	addr := "ipv4_addr"
	if m.V6 {
		addr = "ipv6_addr"
	}
	key := "inet_proto . inet_service"
	if m.Addr {
		key = addr + " . " + key
	}
	if m.Set {
		return key
	}
	return key + " : " + addr + " . inet_service"
}

func (e Element) String() string {
	var b strings.Builder
	if !e.Host.IsUnspecified() {
		fmt.Fprintf(&b, "%s . ", e.Host)
	}
	fmt.Fprintf(&b, "%s . %d", e.Proto, e.HostPort)
	if e.Owner != "" {
		fmt.Fprintf(&b, " comment %q", e.Owner)
	}
	if !e.Direct() {
		fmt.Fprintf(&b, " : %s . %d", e.Target.Addr(), e.Target.Port())
	}
	return b.String()
}

func (r Rule) String() string {
	parts := make([]string, len(r))
	for i, e := range r {
		parts[i] = e.String()
	}
	return strings.Join(parts, " ")
}

func (e Interface) String() string {
	return choose(e.Out, "oifname ", "iifname ") + choose(e.Not, "!= ", "") + strconv.Quote(e.Name)
}

func (e Address) String() string {
	addr := e.Prefix.String()
	if e.Prefix.IsSingleIP() {
		addr = e.Prefix.Addr().String()
	}
	return choose(e.Prefix.Addr().Is4(), "ip ", "ip6 ") + choose(e.Source, "saddr ", "daddr ") + addr
}

func (e Family) String() string   { return "meta nfproto " + choose(e.V6, "ipv6", "ipv4") }
func (DaddrLocal) String() string { return "fib daddr type local" }
func (Known) String() string      { return "ct state established,related" }
func (Translated) String() string { return "ct status dnat" }
func (Masquerade) String() string { return "masquerade" }
func (e Source) String() string {
	return "snat " + choose(e.Addr.Is6(), "ip6", "ip") + " to " + e.Addr.String()
}
func (e ICMP) String() string { return "meta l4proto " + choose(e.V6, "ipv6-icmp", "icmp") }
func (e Port) String() string { return e.Proto + " dport " + strconv.Itoa(int(e.Num)) }
func (e In) String() string {
	return choose(e.Set.V6, "ip6", "ip") + " daddr . meta l4proto . th dport @" + e.Set.Name
}
func (e Group) String() string { return choose(e.Out, "oifgroup ", "iifgroup ") + fmt.Sprint(e.Number) }
func (Counter) String() string { return "counter" }

func (e Translate) String() string {
	family := choose(e.Map.V6, "ip6", "ip")
	return "dnat " + family + " to " + choose(e.Map.Addr, family+" daddr . ", "") + "meta l4proto . th dport map @" + e.Map.Name
}

func (v Verdict) String() string {
	if v.Chain != "" {
		return v.Kind + " " + word(v.Chain)
	}
	return v.Kind
}

// word returns a name as it is written in a ruleset, quoted if it could be read
// as something else. So no name reads as a rule, and two rules that differ have
// different texts. Fingerprints rely on that.
func word(name string) string {
	plain := name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_.@-", r))
	})
	if plain {
		return name
	}
	return strconv.Quote(name)
}

func choose(c bool, yes, no string) string {
	if c {
		return yes
	}
	return no
}
