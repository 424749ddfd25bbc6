// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"

	"holdfast/internal/network/dump"
	"holdfast/internal/network/nft"
)

// Sync makes the table equal to rs and reports whether anything had to be
// changed. If all rules are right it only changes elements that differ; otherwise
// it replaces the table. Either is one transaction, so no packet sees an
// intermediate state.
func (t *Table) Sync(rs nft.Ruleset) (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	same, err := t.sameRules(rs)
	if err != nil {
		return false, err
	}
	var add, del []nft.Element
	for _, m := range rs.Maps {
		if !same {
			break
		}
		a, d, known, err := t.diff(m)
		if err != nil {
			return false, err
		}
		add, del, same = append(add, a...), append(del, d...), known
	}
	if !same {
		t.conn.AddTable(t.table())
		t.conn.DelTable(t.table())
		if err := t.queueAll(rs); err != nil {
			return false, err
		}
		return true, t.flush("replace")
	}
	if len(add)+len(del) == 0 {
		return false, nil
	}
	table := t.table()
	if err := t.queue(table, del, t.conn.SetDeleteElements); err != nil {
		return false, err
	}
	if err := t.queue(table, add, t.conn.SetAddElements); err != nil {
		return false, err
	}
	return true, t.flush("update")
}

// sameRules compares chains, rules and maps, but not elements. It compares rules
// by the fingerprint that they were stored with.
func (t *Table) sameRules(rs nft.Ruleset) (bool, error) {
	all, err := dump.Ruleset(&t.rules, func() ([]*nftables.Chain, error) {
		return t.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	})
	if err != nil {
		return false, fmt.Errorf("nftables table %s: list chains: %w", t.name, err)
	}
	have := map[string]*nftables.Chain{}
	for _, c := range all {
		if c.Table.Name == t.name {
			have[c.Name] = c
		}
	}
	if len(have) != len(rs.Chains) {
		return false, nil
	}
	table := t.table()
	sets, err := dump.Ruleset(&t.rules, func() ([]*nftables.Set, error) { return t.conn.GetSets(table) })
	if err != nil {
		return false, fmt.Errorf("nftables table %s: list maps: %w", t.name, err)
	}
	maps := map[string]*nftables.Set{}
	for _, s := range sets {
		maps[s.Name] = s
	}
	if len(maps) != len(rs.Maps) {
		return false, nil
	}
	for _, m := range rs.Maps {
		want, got := set(table, m), maps[m.Name]
		if got == nil || got.IsMap != want.IsMap || got.KeyType.Bytes != want.KeyType.Bytes || got.DataType.Bytes != want.DataType.Bytes {
			return false, nil
		}
	}
	for _, c := range rs.Chains {
		want, got := chain(table, c), have[c.Name]
		if got == nil || !sameHook(got, want) {
			return false, nil
		}
		if same, err := t.sameChain(table, c); !same {
			return false, err
		}
	}
	return true, nil
}

func sameHook(got, want *nftables.Chain) bool {
	if got.Hooknum == nil || want.Hooknum == nil {
		return got.Hooknum == nil && want.Hooknum == nil
	}
	return got.Type == want.Type && *got.Hooknum == *want.Hooknum &&
		got.Priority != nil && *got.Priority == *want.Priority &&
		got.Policy != nil && *got.Policy == *want.Policy
}

// diff returns the elements to add to and to delete from a map. known is false if
// the map has an element that the engine would not have written.
func (t *Table) diff(m nft.Map) (add, del []nft.Element, known bool, err error) {
	listed, err := t.listed(m)
	if err != nil {
		return nil, nil, false, err
	}
	have := map[nft.Element]bool{}
	for _, l := range listed {
		e, err := nft.Decode(m, l.Key, l.Val, l.Comment)
		if err != nil || e.Check() != nil {
			return nil, nil, false, nil
		}
		have[e] = true
	}
	for _, e := range m.Elements {
		if !have[e] {
			add = append(add, e)
		}
		delete(have, e)
	}
	for e := range have {
		del = append(del, e)
	}
	return add, del, true, nil
}

// onePart is a number of elements that the kernel sends in one part: a part has at
// least 8 KiB, and the largest element takes 150 bytes.
const onePart = 50

// listed returns the elements of a map in the kernel, each once. After a large
// change the kernel resizes the map's hash table in the background. A listing
// meanwhile repeats or omits elements at the borders of its parts, and nothing
// marks it. Therefore a long listing must agree with a second one.
func (t *Table) listed(m nft.Map) ([]nftables.SetElement, error) {
	s := &nftables.Set{Table: t.table(), Name: m.Name}
	all, err := dump.Ruleset(&t.rules, func() ([]nftables.SetElement, error) {
		all, err := t.conn.GetSetElements(s)
		if err != nil || len(all) <= onePart {
			return all, err
		}
		again, err := t.conn.GetSetElements(s)
		if err != nil {
			return nil, err
		}
		first, second := byKey(all), byKey(again)
		if !maps.EqualFunc(first, second, func(nftables.SetElement, nftables.SetElement) bool { return true }) {
			return nil, dump.ErrInterrupted
		}
		return slices.Collect(maps.Values(first)), nil
	})
	if err != nil {
		return nil, fmt.Errorf("nftables table %s: list map %s: %w", t.name, m.Name, err)
	}
	return all, nil
}

func byKey(elements []nftables.SetElement) map[string]nftables.SetElement {
	out := make(map[string]nftables.SetElement, len(elements))
	for _, e := range elements {
		out[string(e.Key)] = e
	}
	return out
}

// Elements returns all published ports in the kernel's table. Without a table
// there are none. Elements that the engine would not have written are left out.
func (t *Table) Elements() ([]nft.Element, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tables, err := dump.Ruleset(&t.rules, func() ([]*nftables.Table, error) {
		return t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	})
	if err != nil {
		return nil, fmt.Errorf("nftables: list tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(have *nftables.Table) bool { return have.Name == t.name }) {
		return nil, nil
	}
	sets, err := dump.Ruleset(&t.rules, func() ([]*nftables.Set, error) { return t.conn.GetSets(t.table()) })
	if err != nil {
		return nil, fmt.Errorf("nftables table %s: list maps: %w", t.name, err)
	}
	var out []nft.Element
	for _, m := range nft.Build(nft.Config{Table: t.name, IPv4: true, IPv6: true, Direct: true}).Maps {
		if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == m.Name }) {
			continue
		}
		listed, err := t.listed(m)
		if err != nil {
			return nil, err
		}
		for _, l := range listed {
			if e, err := nft.Decode(m, l.Key, l.Val, l.Comment); err == nil && e.Check() == nil {
				out = append(out, e)
			}
		}
	}
	return out, nil
}
