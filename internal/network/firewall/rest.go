// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"

	"holdfast/internal/network/dump"
	"holdfast/internal/network/nft"
)

// Where is another program's packet filter in which forwarded packets are to be
// dropped.
type Where int

// The packet filters. Both are the chain FORWARD of iptables, in either variant.
// Programs and administrators put rules that accept there, before a default that
// may drop.
const (
	Nowhere Where = iota
	InTables
	InLegacy
)

// Others describes, by family, what other programs' packet filters do with
// forwarded packets.
type Others struct {
	// Refuse: a filter drops by default, so it has explicitly allowed what it
	// accepts.
	Refuse [2]bool
	// Filter is the filter whose FORWARD has rules.
	Filter [2]Where
	// Closed: FORWARD already ends with our drop.
	Closed [2]bool
	// Decide: a program has a table of its own with rules about forwarded packets.
	Decide bool
}

// inFilter reports whether a base chain is FORWARD of iptables.
func inFilter(c *nftables.Chain) bool {
	return c.Table.Name == "filter" && c.Name == "FORWARD" && c.Table.Family != nftables.TableFamilyINet
}

// ourKind reports whether a table or chain belongs to an engine of this kind.
func ourKind(name string) bool { return strings.HasPrefix(name, "holdfast") }

// Others reads the other programs' packet filters. It changes nothing.
func (t *Table) Others() (o Others, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	chains, err := dump.Ruleset(&t.rules, t.conn.ListChains)
	if err != nil {
		return o, fmt.Errorf("nftables: list chains: %w", err)
	}
	for _, c := range chains {
		base := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter
		if !base || families[c.Table.Family] == "" || ourKind(c.Table.Name) {
			continue
		}
		if strings.HasPrefix(c.Table.Name, "firewalld") {
			o.refuse(c.Table.Family)
			continue
		}
		if err := t.inspect(&o, c); err != nil {
			return o, err
		}
	}
	for v, v6 := range []bool{false, true} {
		table, err := readLegacy(v6)
		if err != nil {
			return o, fmt.Errorf("x_tables: %w", err)
		}
		if table == nil {
			continue
		}
		of := func(chain string) []nft.Foreign { return table.chains[chain] }
		o.Refuse[v] = o.Refuse[v] || nft.Place(table.forward, table.policyDrops, t.name, of).Needed
		if o.Filter[v] == Nowhere && hasRules(table.forward) {
			o.Filter[v] = InLegacy
			o.Closed[v] = closed(table.forward, t.name, of)
		}
	}
	return o, nil
}

func (t *Table) inspect(o *Others, c *nftables.Chain) error {
	rules := &reader{table: t, filter: &filter{Table: c.Table}}
	chain, err := rules.read(c.Name)
	if err != nil {
		return err
	}
	p := nft.Place(chain.rules, c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop, t.name, rules.of)
	if p.Needed {
		o.refuse(c.Table.Family)
	}
	switch {
	case !hasRules(chain.rules):
	case !inFilter(c):
		o.Decide = true
	default:
		v := 0
		if c.Table.Family == nftables.TableFamilyIPv6 {
			v = 1
		}
		o.Filter[v] = InTables
		o.Closed[v] = closed(chain.rules, t.name, rules.of)
	}
	return rules.err
}

func (o *Others) refuse(family nftables.TableFamily) {
	o.Refuse[0] = o.Refuse[0] || family != nftables.TableFamilyIPv6
	o.Refuse[1] = o.Refuse[1] || family != nftables.TableFamilyIPv4
}

// hasRules reports whether a chain has rules of other programs.
func hasRules(chain []nft.Foreign) bool {
	return slices.ContainsFunc(chain, func(r nft.Foreign) bool { return r.Deed != nft.Calls || !ourKind(r.Chain) })
}

// closed reports whether a chain calls our chain, and our chain ends with a drop.
func closed(chain []nft.Foreign, ours string, of func(string) []nft.Foreign) bool {
	calls := slices.ContainsFunc(chain, func(r nft.Foreign) bool { return r.Deed == nft.Calls && r.Chain == ours })
	if !calls {
		return false
	}
	rules := of(ours)
	return len(rules) > 0 && rules[len(rules)-1].Deed == nft.Refuses
}

// closes reports whether packets that no rule of FORWARD decided are to be
// dropped at its end.
func (a Admission) closes(v6 bool, where Where) bool {
	v := 0
	if v6 {
		v = 1
	}
	return where != Nowhere && a.Close[v] == where
}
