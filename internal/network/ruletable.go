// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"sync"
	"sync/atomic"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/firewall"
	"holdfast/internal/network/nft"
)

// ruleTable is the engine's table of rules in the kernel. Its lock comes before
// those of forwarding and of the registry, whose content it compares with the
// kernel's.
type ruleTable struct {
	opts       *parsed
	reg        *registry
	forwarding *forwarding
	// name is the nftables table. Only guard.chooseTable changes it, before the
	// table is opened.
	name string

	// mu is read-locked while elements are added or deleted, and write-locked while
	// the whole table is compared, so that a comparison never removes an element
	// that was just added.
	mu    sync.RWMutex
	table *firewall.Table // nil without a packet filter, or before Restore

	// rest is as last evaluated.
	rest atomic.Pointer[rest]
}

// open opens the table. It is idempotent.
func (t *ruleTable) open() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.table != nil {
		return nil
	}
	table, err := firewall.Open(t.name)
	if err != nil {
		return fmt.Errorf("%w (without nftables in the kernel, set \"iptables\" and \"ip6tables\" to false)", err)
	}
	t.table = table
	return nil
}

// close closes the connection to the kernel. The table stays.
func (t *ruleTable) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.table == nil {
		return nil
	}
	table := t.table
	t.table = nil
	return table.Close()
}

// opened returns the table, or nil if there is none.
func (t *ruleTable) opened() *firewall.Table {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.table
}

// add adds elements.
func (t *ruleTable) add(elements []nft.Element) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.table == nil || len(elements) == 0 {
		return nil
	}
	return t.table.Add(elements)
}

// delete deletes elements.
func (t *ruleTable) delete(elements []nft.Element) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.table == nil || len(elements) == 0 {
		return nil
	}
	return t.table.Delete(elements)
}

// deleteBatches returns the messages that delete elements.
func (t *ruleTable) deleteBatches(elements []nft.Element) [][]byte {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.table == nil || len(elements) == 0 {
		return nil
	}
	return t.table.DeleteBatches(elements)
}

// elements returns the elements that are in the table.
func (t *ruleTable) elements() ([]nft.Element, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.table.Elements()
}

// sync makes the table what it should be, if it differs.
func (t *ruleTable) sync() (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.table == nil {
		return false, nil
	}
	r, err := t.evaluateRest()
	if err != nil {
		return false, err
	}
	t.rest.Store(&r)
	return t.table.Sync(nft.Build(t.config()))
}

// config returns the input for the table.
func (t *ruleTable) config() nft.Config {
	c := t.reg.rules()
	c.Table, c.Rest = t.name, t.currentRest().rules
	return c
}

// rest is how forwarded packets that do not concern the bridges are dropped, and
// by which packet filter.
type rest struct {
	rules nft.Rest
	// close names, by family, another program's FORWARD chain that ends with a
	// drop, or shall.
	close [2]firewall.Where
	// pending: that FORWARD chain does not drop yet. Until it does, the engine's
	// own table drops.
	pending bool
}

// evaluateRest reads the other packet filters and decides which one drops the
// rest. The lock is held.
func (t *ruleTable) evaluateRest() (r rest, err error) {
	f := t.forwarding.current()
	bridges, families := t.reg.filtered()
	var ours []string
	for _, b := range bridges {
		ours = append(ours, b.Name)
	}
	wanted := [2]bool{f.Switched[0] && families[0], f.Switched[1] && families[1]}
	if t.opts.IPForwardNoDrop || wanted == [2]bool{} {
		return r, nil
	}
	o, err := t.table.Others()
	if err != nil {
		return r, err
	}
	others, err := bridge.Others(ours)
	if err != nil {
		return r, err
	}
	r.rules.Before = f.Before
	for _, b := range others {
		r.rules.Within = append(r.rules.Within, b.Name)
		if o.Decide && b.Inner {
			r.rules.Pass = append(r.rules.Pass, b.Name)
		}
	}
	for v := range wanted {
		switch {
		case !wanted[v], o.Refuse[v]:
		case o.Filter[v] == firewall.Nowhere:
			r.rules.Refused[v] = true
		default:
			r.close[v] = o.Filter[v]
			if !o.Closed[v] {
				r.rules.Refused[v], r.pending = true, true
			}
		}
	}
	return r, nil
}

// currentRest returns the rest as last evaluated.
func (t *ruleTable) currentRest() rest {
	if r := t.rest.Load(); r != nil {
		return *r
	}
	return rest{}
}

// closes reports whether the rest is dropped anywhere. Only then do the bridges
// of other programs matter.
func (t *ruleTable) closes() bool {
	r := t.currentRest()
	return r.rules.Refused != [2]bool{} || r.close != [2]firewall.Where{}
}

// settleRest applies the table again once other packet filters drop the rest, so
// that the table itself no longer does.
func (t *ruleTable) settleRest() (changed bool, err error) {
	if !t.currentRest().pending {
		return false, nil
	}
	return t.sync()
}
