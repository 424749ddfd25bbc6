// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
	"holdfast/internal/network/overlay"
)

// SetPeers compares the kernel's entries with those that the network's endpoints on
// other hosts need, and changes the difference. Unless the list is complete,
// nothing is removed.
func (h Host) SetPeers(n overlay.Network, peers []overlay.Peer, complete bool) (overlay.Changes, error) {
	fail := func(err error) (overlay.Changes, error) {
		return overlay.Changes{}, fmt.Errorf("peers of overlay network %s: %w", n.ID, err)
	}
	in, done, err := h.openNetwork(n.ID)
	if err != nil {
		return fail(err)
	}
	defer done()
	index := map[uint32]int{}
	var have overlay.Tables
	for _, s := range n.Subnets {
		vx, err := in.find(vxlanName(s))
		if err == nil && vx == nil {
			err = errors.New("the network has no VXLAN interface on this host: it must be made first")
		}
		if err != nil {
			return fail(err)
		}
		index[s.VNI] = vx.Attrs().Index
		if err := in.dump(vx.Attrs().Index, s.VNI, &have); err != nil {
			return fail(err)
		}
	}
	c := overlay.Compare(overlay.PlanTables(n, peers), have, complete)
	if err := in.apply(c, index); err != nil {
		return fail(err)
	}
	in.correct(n, c.MovedNeighbours(have))
	return c, nil
}

// dump adds the entries of a VXLAN interface.
func (s space) dump(index int, vni uint32, t *overlay.Tables) error {
	fdb, err := dump.Whole(func() ([]netlink.Neigh, error) { return s.NeighList(index, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, e := range fdb {
		// The bridge's own entries, of the MACs that it has seen, have no host.
		if host, ok := netip.AddrFromSlice(e.IP); ok && e.Flags&netlink.NTF_SELF != 0 && len(e.HardwareAddr) == 6 {
			t.FDB = append(t.FDB, overlay.FDB{VNI: vni, MAC: overlay.MAC(e.HardwareAddr), Host: host.Unmap()})
		}
	}
	neighbours, err := dump.Whole(func() ([]netlink.Neigh, error) { return s.NeighList(index, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, e := range neighbours {
		if a, ok := netip.AddrFromSlice(e.IP); ok && e.State == netlink.NUD_PERMANENT && len(e.HardwareAddr) == 6 {
			t.Neighbours = append(t.Neighbours, overlay.Neighbour{VNI: vni, Addr: a.Unmap(), MAC: overlay.MAC(e.HardwareAddr)})
		}
	}
	return nil
}

// apply changes the entries. The way to a MAC comes before the address that leads
// to the MAC, and goes after it.
func (s space) apply(c overlay.Changes, index map[uint32]int) error {
	for _, e := range c.Set.FDB {
		if err := s.NeighSet(fdb(e, index)); err != nil {
			return fmt.Errorf("forward %s to %s: %w", e.MAC, e.Host, err)
		}
	}
	for _, e := range c.Set.Neighbours {
		if err := s.NeighSet(neighbour(e, index)); err != nil {
			return fmt.Errorf("neighbour %s with %s: %w", e.Addr, e.MAC, err)
		}
	}
	for _, e := range c.Remove.Neighbours {
		if err := s.NeighDel(neighbour(e, index)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove neighbour %s: %w", e.Addr, err)
		}
	}
	for _, e := range c.Remove.FDB {
		if err := s.NeighDel(fdb(e, index)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("stop forwarding %s to %s: %w", e.MAC, e.Host, err)
		}
	}
	return nil
}

func fdb(e overlay.FDB, index map[uint32]int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index[e.VNI], Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		IP: e.Host.AsSlice(), HardwareAddr: e.MAC[:],
	}
}

func neighbour(e overlay.Neighbour, index map[uint32]int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index[e.VNI], Family: unix.AF_INET, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST,
		IP: e.Addr.AsSlice(), HardwareAddr: e.MAC[:],
	}
}

// correct sends the containers on the bridge an announcement of each neighbour that
// may have had another MAC. They would go on sending to the former MAC for up to
// half a minute. It ignores errors: the caches expire.
func (s space) correct(n overlay.Network, moved []overlay.Neighbour) {
	for _, e := range moved {
		sub, ok := n.SubnetOf(e.Addr)
		if !ok {
			continue
		}
		_ = s.do(func() error { return announce(bridgeName(sub), e.MAC, e.Addr) })
	}
}

// announce sends an announcement that an address is at a MAC, by an interface of
// the thread's namespace. The frame itself comes from the interface, so that a
// bridge learns nothing from it if the MAC is another's.
func announce(by string, mac overlay.MAC, a netip.Addr) error {
	l, err := netlink.LinkByName(by)
	if err != nil {
		return err
	}
	frame, err := bridge.Announcement(mac[:], a)
	if err != nil {
		return err
	}
	copy(frame[6:12], l.Attrs().HardwareAddr)
	return bridge.SendFrame(l.Attrs().Index, frame)
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}
