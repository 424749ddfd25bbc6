// SPDX-License-Identifier: Apache-2.0

// Package overlay is the data plane of overlay networks as data: which entries the
// kernel's tables need so that the containers of a network reach each other over
// VXLAN (RFC 7348), and what to change if the kernel has others. It is pure.
// Package kernel, below it, applies that.
//
// Each subnet of a network is one VXLAN segment. No address is learned from
// packets and nothing is flooded to other hosts: each host has an entry for each
// endpoint of the network that is on another host,
//
//	neighbour   address → MAC   answers ARP requests for it
//	FDB         MAC → host      says where frames to it are sent
//
// The endpoints are known from the swarm's gossip. The entries stay in the kernel
// when every process has ended.
package overlay

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Defaults of a network.
const (
	DefaultPort = 4789 // assigned to VXLAN by IANA
	DefaultMTU  = 1450 // of Ethernet, less the VXLAN headers over IPv4
)

// maxVNI is the largest number of a segment: 24 bits.
const maxVNI = 1<<24 - 1

// minMTU is the smallest MTU that IPv4 allows.
const minMTU = 68

// MAC is an Ethernet address.
type MAC [6]byte

// ParseMAC parses six bytes in hexadecimal with colons between them.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	digits := strings.ReplaceAll(s, ":", "")
	if n, err := hex.Decode(m[:], []byte(digits[:min(len(digits), 12)])); err != nil || n != 6 || m.String() != strings.ToLower(s) {
		return MAC{}, fmt.Errorf("MAC address %q: expected six bytes such as 02:42:0a:00:01:05", s)
	}
	return m, nil
}

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// MACOf returns the MAC that Docker gives to an IPv4 address. An address that moves
// to another container then keeps its MAC, so that no ARP cache is ever wrong.
func MACOf(a netip.Addr) MAC {
	ip := a.As4()
	return MAC{0x02, 0x42, ip[0], ip[1], ip[2], ip[3]}
}

// Network is an overlay network.
type Network struct {
	ID  string
	MTU int // of its endpoints, bytes; 0 means DefaultMTU
	// Port is the UDP port of VXLAN, the same on all hosts; 0 means DefaultPort.
	Port    uint16
	Subnets []Subnet
}

// Subnet is one segment of a network.
type Subnet struct {
	Prefix netip.Prefix
	// Gateway is the address that the network has on each host. It routes between
	// the subnets of the network, and nowhere else. A network with one subnet needs
	// none.
	Gateway netip.Addr
	VNI     uint32 // number of the segment, unique among the networks of a swarm
}

// WithDefaults returns the network with the defaults in place of zeros.
func (n Network) WithDefaults() Network {
	n.MTU = cmp.Or(n.MTU, DefaultMTU)
	n.Port = cmp.Or(n.Port, DefaultPort)
	return n
}

// Check returns an error if no data plane can be made for the network.
func (n Network) Check() error {
	n = n.WithDefaults()
	fail := func(format string, args ...any) error {
		return fmt.Errorf("overlay network %s: %s", n.ID, fmt.Sprintf(format, args...))
	}
	switch {
	case n.ID == "" || strings.ContainsAny(n.ID, "/\x00") || strings.HasPrefix(n.ID, "."):
		return fmt.Errorf("overlay network: %q is no network ID", n.ID)
	case n.MTU < minMTU || n.MTU > 65485:
		return fail("MTU %d: it must be between %d and 65485", n.MTU, minMTU)
	case len(n.Subnets) == 0:
		return fail("it has no subnet")
	}
	for i, s := range n.Subnets {
		switch {
		case !s.Prefix.IsValid() || !s.Prefix.Addr().Is4():
			return fail("subnet %s: only IPv4 subnets are supported", s.Prefix)
		case s.VNI == 0 || s.VNI > maxVNI:
			return fail("subnet %s: VXLAN number %d is not between 1 and %d", s.Prefix, s.VNI, maxVNI)
		case s.Gateway.IsValid() && !s.Prefix.Contains(s.Gateway):
			return fail("gateway %s is not in the subnet %s", s.Gateway, s.Prefix)
		case len(n.Subnets) > 1 && !s.Gateway.IsValid():
			return fail("subnet %s needs a gateway, because the network has several subnets", s.Prefix)
		}
		for _, o := range n.Subnets[:i] {
			if o.Prefix.Overlaps(s.Prefix) {
				return fail("its subnets %s and %s overlap", o.Prefix, s.Prefix)
			}
			if o.VNI == s.VNI {
				return fail("its subnets %s and %s have the same VXLAN number %d", o.Prefix, s.Prefix, s.VNI)
			}
		}
	}
	return nil
}

// SubnetOf returns the subnet that an address is in.
func (n Network) SubnetOf(a netip.Addr) (Subnet, bool) {
	for _, s := range n.Subnets {
		if s.Prefix.Contains(a) {
			return s, true
		}
	}
	return Subnet{}, false
}

// Peer is an endpoint on another host.
type Peer struct {
	Addr netip.Addr
	MAC  MAC
	Host netip.Addr // the other host's address for VXLAN
}

// Tables are entries of the kernel's tables, sorted.
type Tables struct {
	FDB        []FDB
	Neighbours []Neighbour
}

// FDB is an entry of a VXLAN interface's forwarding database.
type FDB struct {
	VNI  uint32
	MAC  MAC
	Host netip.Addr
}

// Neighbour is an address that a VXLAN interface answers ARP requests for.
type Neighbour struct {
	VNI  uint32
	Addr netip.Addr
	MAC  MAC
}

type fdbKey struct {
	vni uint32
	mac MAC
}

type neighbourKey struct {
	vni  uint32
	addr netip.Addr
}

// PlanTables returns the entries that a network needs on a host. peers are its
// endpoints on other hosts. A peer whose address is in none of the subnets is left
// out. Of two peers with the same address, or the same MAC, the later one in the
// list counts.
func PlanTables(n Network, peers []Peer) Tables {
	at := map[neighbourKey]Peer{}
	for _, p := range peers {
		s, ok := n.SubnetOf(p.Addr)
		if ok && p.Host.IsValid() && p.MAC != (MAC{}) && p.MAC[0]&1 == 0 {
			at[neighbourKey{s.VNI, p.Addr}] = p
		}
	}
	hosts := map[fdbKey]netip.Addr{}
	for _, p := range peers {
		s, _ := n.SubnetOf(p.Addr)
		if at[neighbourKey{s.VNI, p.Addr}] == p {
			hosts[fdbKey{s.VNI, p.MAC}] = p.Host
		}
	}
	var t Tables
	for k, p := range at {
		t.Neighbours = append(t.Neighbours, Neighbour{k.vni, k.addr, p.MAC})
	}
	for k, host := range hosts {
		t.FDB = append(t.FDB, FDB{k.vni, k.mac, host})
	}
	t.Sort()
	return t
}

// Sort sorts the entries.
func (t Tables) Sort() {
	slices.SortFunc(t.FDB, func(a, b FDB) int {
		return cmp.Or(cmp.Compare(a.VNI, b.VNI), slices.Compare(a.MAC[:], b.MAC[:]), a.Host.Compare(b.Host))
	})
	slices.SortFunc(t.Neighbours, func(a, b Neighbour) int {
		return cmp.Or(cmp.Compare(a.VNI, b.VNI), a.Addr.Compare(b.Addr), slices.Compare(a.MAC[:], b.MAC[:]))
	})
}

// Changes are what makes one state of the tables into another.
type Changes struct {
	Set    Tables // to add, or to put in place of the entry with the same key
	Remove Tables
}

// Empty reports whether there is nothing to do.
func (c Changes) Empty() bool {
	return len(c.Set.FDB)+len(c.Set.Neighbours)+len(c.Remove.FDB)+len(c.Remove.Neighbours) == 0
}

// Compare returns how to get from the entries that the kernel has to those that are
// wanted. Only if the list of peers was complete are others removed: right after a
// start the gossip knows few peers, and "not known yet" is no reason to cut off a
// container.
func Compare(want, have Tables, complete bool) Changes {
	var c Changes
	hosts := map[fdbKey]netip.Addr{}
	for _, e := range have.FDB {
		hosts[fdbKey{e.VNI, e.MAC}] = e.Host
	}
	macs := map[neighbourKey]MAC{}
	for _, e := range have.Neighbours {
		macs[neighbourKey{e.VNI, e.Addr}] = e.MAC
	}
	for _, e := range want.FDB {
		k := fdbKey{e.VNI, e.MAC}
		if hosts[k] != e.Host {
			c.Set.FDB = append(c.Set.FDB, e)
		}
		delete(hosts, k)
	}
	for _, e := range want.Neighbours {
		k := neighbourKey{e.VNI, e.Addr}
		if macs[k] != e.MAC {
			c.Set.Neighbours = append(c.Set.Neighbours, e)
		}
		delete(macs, k)
	}
	if !complete {
		return c
	}
	for k, host := range hosts {
		c.Remove.FDB = append(c.Remove.FDB, FDB{k.vni, k.mac, host})
	}
	for k, mac := range macs {
		c.Remove.Neighbours = append(c.Remove.Neighbours, Neighbour{k.vni, k.addr, mac})
	}
	c.Remove.Sort()
	return c
}

// MovedNeighbours returns those of the neighbours to be set whose address may have
// had another MAC before, so that the ARP caches of containers may be wrong.
func (c Changes) MovedNeighbours(have Tables) []Neighbour {
	before := map[neighbourKey]MAC{}
	for _, e := range have.Neighbours {
		before[neighbourKey{e.VNI, e.Addr}] = e.MAC
	}
	var moved []Neighbour
	for _, e := range c.Set.Neighbours {
		old, known := before[neighbourKey{e.VNI, e.Addr}]
		if known && old != e.MAC || e.MAC != MACOf(e.Addr) {
			moved = append(moved, e)
		}
	}
	return moved
}
