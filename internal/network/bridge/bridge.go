// SPDX-License-Identifier: Apache-2.0

// Package bridge makes bridges, network namespaces and the veths between them by
// netlink, in this process. It owns the interfaces and namespaces that it made,
// which it identifies by name. It knows neither networks nor containers nor
// packet filters. All functions work on the network namespace of the process.
package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
)

// Bridge is the desired state of a bridge.
type Bridge struct {
	Name string
	MAC  net.HardwareAddr // of a new bridge; nil lets the kernel choose
	MTU  int
	// Addrs are the gateway addresses, with the prefix length of their subnets.
	Addrs []netip.Prefix
	IPv6  bool
	// Exact: other addresses are removed. It is set for bridges that the engine
	// made, not for a bridge that the user provided.
	Exact bool
	// Tolerant keeps other addresses that were set on an Exact bridge, because
	// another daemon may just have begun to use it. Addresses that the kernel
	// learned from routers are removed all the same.
	Tolerant bool
	// Filter passes frames between the ports to the packet filter.
	Filter bool
	// Group is the group of interfaces (ip-link(8)) that an Exact bridge is put
	// into, unless it is in another group already. Zero means none.
	Group uint32
	// Owner is recorded on an Exact bridge; see Owned.
	Owner string
}

// Ensure creates the bridge, or changes what differs of an existing one, and
// reports whether it changed anything.
func Ensure(b Bridge) (changed bool, err error) {
	fail := func(err error) (bool, error) { return changed, fmt.Errorf("bridge %s: %w", b.Name, err) }
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fail(err)
	}
	defer h.Close()
	link, err := h.LinkByName(b.Name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = b.Name, b.MTU, b.MAC
		// Ensure may run twice at once, so another call may have added the bridge.
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fail(fmt.Errorf("add: %w", err))
		}
		changed = true
		if link, err = h.LinkByName(b.Name); err == nil {
			err = dontDelay(link.Attrs().Index)
		}
	}
	if err != nil {
		return fail(err)
	}
	if link.Type() != "bridge" {
		return fail(fmt.Errorf("there is an interface of that name which is a %s: remove it or name another bridge", link.Type()))
	}
	if b.Exact && link.Attrs().MTU != b.MTU {
		if err := h.LinkSetMTU(link, b.MTU); err != nil {
			return fail(fmt.Errorf("set mtu %d: %w", b.MTU, err))
		}
		changed = true
	}
	if b.Exact {
		c, err := setOwner(h, link, b.Owner)
		changed = changed || c
		if err != nil {
			return fail(err)
		}
		if b.Group != 0 && link.Attrs().Group == 0 {
			if err := h.LinkSetGroup(link, int(b.Group)); err != nil {
				return fail(fmt.Errorf("set group: %w", err))
			}
			changed = true
		}
	}
	c, err := harden(h, link, b)
	changed = changed || c
	if err != nil {
		return fail(err)
	}
	c, err = addresses(h, link, b)
	changed = changed || c
	if err != nil {
		return fail(err)
	}
	if b.Filter {
		if err := filterFrames(link.Attrs().Index); err != nil {
			return fail(err)
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(link); err != nil {
			return fail(fmt.Errorf("bring up: %w", err))
		}
		changed = true
	}
	return changed, nil
}

var linkLocal = netip.MustParsePrefix("fe80::1/64")

func addresses(h *netlink.Handle, link netlink.Link, b Bridge) (changed bool, err error) {
	have, err := dump.Whole(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return false, fmt.Errorf("list addresses: %w", err)
	}
	present := map[netip.Prefix]netlink.Addr{}
	for _, a := range have {
		if p, ok := fromIPNet(a.IPNet); ok {
			present[p] = a
		}
	}
	want := b.Addrs
	if b.IPv6 {
		// The kernel's own link-local address is not usable until duplicate address
		// detection has finished, which takes up to two seconds after the first port
		// is added. And without a link-local address the host does not look for
		// neighbours.
		want = append([]netip.Prefix{linkLocal}, want...)
	}
	for _, p := range want {
		if _, ok := present[p]; ok {
			delete(present, p)
			continue
		}
		addr := &netlink.Addr{IPNet: toIPNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		// The address may have been added since it was listed.
		if err := h.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return changed, fmt.Errorf("add address %s: %w", p, err)
		}
		changed = true
	}
	if !b.Exact {
		return changed, nil
	}
	for p, a := range present {
		if p.Addr().IsLinkLocalUnicast() {
			continue // added by the kernel
		}
		if b.Tolerant && a.Flags&unix.IFA_F_PERMANENT != 0 {
			continue
		}
		if err := h.AddrDel(link, &a); err != nil {
			return changed, fmt.Errorf("remove address %s: %w", p, err)
		}
		changed = true
	}
	return changed, nil
}

// Remove deletes a bridge. A missing bridge is not an error.
func Remove(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil && link.Type() == "bridge" {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: remove: %w", name, err)
	}
	return nil
}

// Addresses returns the addresses of an interface, without link-local ones.
// exists is false if there is no such interface.
func Addresses(name string) (addrs []netip.Prefix, exists bool, err error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("interface %s: %w", name, err)
	}
	list, err := dump.Addrs(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, true, fmt.Errorf("interface %s: list addresses: %w", name, err)
	}
	for _, a := range list {
		if p, ok := fromIPNet(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			addrs = append(addrs, p)
		}
	}
	return addrs, true, nil
}

// Used returns the subnets that the host has routes to, without default routes
// and without those on the interface except.
func Used(except string) ([]netip.Prefix, error) {
	skip := 0
	if link, err := netlink.LinkByName(except); err == nil {
		skip = link.Attrs().Index
	}
	routes, err := dump.Routes(netlink.FAMILY_ALL, &netlink.Route{}, 0)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var used []netip.Prefix
	for _, r := range routes {
		if r.LinkIndex == skip && skip != 0 {
			continue
		}
		if p, ok := fromIPNet(r.Dst); ok && p.Bits() > 0 {
			used = append(used, p.Masked())
		}
	}
	return used, nil
}

// Port is a veth on the host.
type Port struct {
	Name   string
	Index  int
	Bridge string // empty if it is not a port of a bridge
	Up     bool
	// Description records the owner; see Owned and Foreign.
	Description string
	// Hardened: the kernel has reported the settings that Harden makes.
	Hardened bool
}

// Harden is HardenPort for a port of which Ports has listed the settings: with as many ports
// as containers run, reading each setting from /proc takes much longer.
func (p Port) Harden() (changed bool, err error) {
	if p.Hardened {
		return false, nil
	}
	return HardenPort(p.Name)
}

// Ports returns the host's veths, by name.
func Ports() (map[string]Port, error) {
	links, err := dump.Whole(listLinks)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	ports := map[string]Port{}
	for _, l := range links {
		if l.kind == "veth" {
			ports[l.name] = Port{Name: l.name, Index: l.index, Bridge: names[l.master], Up: l.flags&unix.IFF_UP != 0, Description: l.description, Hardened: l.hardened}
		}
	}
	return ports, nil
}

// Attach makes an interface of the host a port of a bridge again.
func Attach(p Port, bridge string, isolated bool) error {
	index, err := indexOf(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := p.Harden(); err != nil {
		return err
	}
	if err := c.setMaster(p.Index, index); err != nil {
		return fmt.Errorf("add interface %s to %s: %w", p.Name, bridge, err)
	}
	if err := c.port(p.Index, isolated); err != nil {
		return fmt.Errorf("bridge port %s: %w", p.Name, err)
	}
	return nil
}

// RemovePort deletes both ends of a veth. A missing veth is not an error.
func RemovePort(p Port) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.delLink(p.Index); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", p.Name, err)
	}
	return nil
}
