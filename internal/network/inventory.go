// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/ipam"
	"holdfast/internal/network/nft"
)

// inventory is the content of the registry. It has no lock: only methods of
// registry call its methods.
type inventory struct {
	opts      *parsed
	networks  map[string]*object // by name
	sandboxes map[string]Sandbox // by container
	published map[string]bool    // containers whose elements belong in the table
	ports     *hostPorts
}

// object is a network with its address allocators.
type object struct {
	*record
	allocators []*ipam.Allocator // one for each of the record's subnets
	// done is closed when a new network was set up in the kernel, or was not. It is nil
	// for a network of an earlier life of the daemon.
	done chan struct{}
}

// isBeingSetUp reports whether a new network is not complete in the kernel yet.
func (n *object) isBeingSetUp() bool {
	if n.done == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// adoptSandboxes takes over the sandboxes and defines the predefined networks.
func (v *inventory) adoptSandboxes(sandboxes map[string]Sandbox, o ownership) error {
	if err := v.definePredefined(o); err != nil {
		return err
	}
	for _, n := range v.networks {
		if predefined(n.Name) || n.ConfigOnly {
			continue
		}
		if err := n.makeAllocators(); err != nil {
			return err
		}
	}
	for id, s := range sandboxes {
		v.sandboxes[id] = s
		v.published[id] = true
		for _, p := range s.Ports {
			v.ports.take(p, id)
		}
		for _, e := range s.Endpoints {
			n := v.networks[e.Network]
			if n == nil {
				continue
			}
			for _, a := range []Addressing{e.IPv4, e.IPv6} {
				n.readopt(a.Address)
			}
		}
	}
	// The last allocated address is most likely the highest, so continue after it.
	for _, n := range v.networks {
		for _, a := range n.allocators {
			if h := a.Highest(); h.IsValid() {
				a.Resume(h)
			}
		}
	}
	return nil
}

// readopt reserves an address again. An address that is in no subnet of the
// network any more need not be reserved.
func (n *object) readopt(p netip.Prefix) {
	if !p.IsValid() {
		return
	}
	for _, a := range n.allocators {
		if a.Contains(p.Addr()) {
			// If it is reserved already, two records name one address. Both containers
			// go on with it, and no third one gets it.
			_ = a.Reserve(p.Addr())
		}
	}
}

// makeAllocators creates the allocators from the subnets.
func (n *object) makeAllocators() error {
	n.allocators = nil
	for _, s := range n.Subnets {
		reserved := []netip.Addr{s.Gateway, s.Bridge}
		for _, a := range s.Aux {
			reserved = append(reserved, a)
		}
		a, err := ipam.New(ipam.Subnet{Prefix: s.Prefix, Range: s.Range, Reserved: reserved})
		if err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
		n.allocators = append(n.allocators, a)
	}
	return nil
}

// wanted is a bridge that should exist.
type wanted struct {
	bridge.Bridge
	traits
	subnets []netip.Prefix
}

// add adds an address of the bridge with its subnet.
func (w *wanted) add(p netip.Prefix) {
	if p.IsValid() && p.Addr().IsValid() && !slices.Contains(w.Addrs, p) {
		w.Addrs = append(w.Addrs, p)
		w.IPv6 = w.IPv6 || p.Addr().Is6()
	}
	if p = p.Masked(); p.IsValid() && !slices.Contains(w.subnets, p) {
		w.subnets = append(w.subnets, p)
	}
}

// bridges returns the bridges of the networks, and those of endpoints that were
// made with an earlier configuration: a container keeps its bridge and its
// gateway.
func (v *inventory) bridges() []wanted {
	byName := map[string]*wanted{}
	get := func(name string) *wanted {
		if byName[name] == nil {
			// The daemon's options apply unless a network names the bridge. A bridge of
			// an earlier configuration has no network.
			t := traits{mtu: v.opts.MTU, icc: v.opts.ICC, masq: v.opts.IPMasq}
			byName[name] = &wanted{Bridge: bridge.Bridge{Name: name, MTU: t.mtu, Filter: !t.icc && bridge.Filtered(), Group: nft.BridgeGroup, Owner: v.opts.Root}, traits: t}
		}
		return byName[name]
	}
	for _, n := range v.networks {
		if n.Bridge != nil {
			n.want(get(n.Bridge.Name), v.opts.traits(n.record))
		}
	}
	for _, s := range v.sandboxes {
		for _, e := range s.Endpoints {
			if e.Bridge != "" {
				w := get(e.Bridge)
				w.Filter = w.Filter || e.Rules != nil && !e.Rules.ICC && bridge.Filtered()
				w.add(e.IPv4.BridgeAddress)
				w.add(e.IPv6.BridgeAddress)
			}
		}
	}
	out := make([]wanted, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		w := *byName[name]
		sort.SliceStable(w.Addrs, func(i, j int) bool { return w.Addrs[i].Addr().Less(w.Addrs[j].Addr()) })
		out = append(out, w)
	}
	return out
}

// want adds to a bridge what its network needs of it.
func (n *object) want(w *wanted, t traits) {
	w.traits = t
	w.MTU, w.Filter = w.mtu, !w.icc && bridge.Filtered()
	w.Exact = n.Bridge.Made
	w.MAC, _ = parseMAC(n.Bridge.MAC)
	for _, s := range n.Subnets {
		w.add(netip.PrefixFrom(s.Bridge, s.Prefix.Bits()))
		if !s.Bridge.IsValid() && !w.internal {
			// The gateway is another host, but packets are still routed by this one.
			w.subnets = append(w.subnets, s.Prefix)
		}
	}
}

// madeParents returns the parents that the engine made, by network.
func (v *inventory) madeParents() map[string]string {
	made := map[string]string{}
	for _, n := range v.networks {
		if p := n.Parent; p != nil && p.Made {
			made[n.Name] = p.Name
		}
	}
	return made
}

// rules returns the input for the nftables table, without its name and without the
// rest.
func (v *inventory) rules() nft.Config {
	families := v.families()
	c := nft.Config{Direct: v.opts.AllowDirect, IPv4: families[0], IPv6: families[1]}
	for _, b := range v.bridges() {
		nb := nft.Bridge{Name: b.Name, ICC: b.icc, Masquerade: b.masq, Internal: b.internal, Exceptions: v.exceptions(b),
			Subnets: b.subnets, Access: b.access, Trusted: b.trusted, Source: b.source}
		for id := range v.published {
			if e, on := onDefault(v.sandboxes[id]); on && e.Bridge == b.Name {
				nb.LegacyLinks = append(nb.LegacyLinks, v.legacyLinks(v.sandboxes[id])...)
			}
		}
		c.Bridges = append(c.Bridges, nb)
	}
	for id := range v.published {
		c.Elements = append(c.Elements, v.opts.elements(v.sandboxes[id])...)
	}
	return c
}

// removeRecord forgets a network and deletes its record.
func (v *inventory) removeRecord(n *object) error {
	delete(v.networks, n.Name)
	if err := os.Remove(filepath.Join(v.opts.Root, n.ID+".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network %s: %w", n.Name, err)
	}
	return nil
}
