// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
	"holdfast/internal/network/overlay"
)

// Endpoint is an interface on an overlay network.
type Endpoint struct {
	// ID is recorded with the veth. Its first eleven characters name the veth's end
	// at the bridge.
	ID string
	// Netns is the file of the namespace that gets the interface, or empty for the
	// host's own.
	Netns string
	Name  string // of the interface, such as eth0
	// Addr is the address, with the length of its subnet.
	Addr netip.Prefix
	MAC  overlay.MAC
}

// portName is the name of the veth's end at the bridge.
func portName(endpoint string) string { return "hf" + endpoint[:min(len(endpoint), 11)] }

func (e Endpoint) check(n overlay.Network) (overlay.Subnet, error) {
	sub, ok := n.SubnetOf(e.Addr.Addr())
	switch {
	case e.ID == "":
		return sub, errors.New("it has no ID")
	case !ok || e.Addr.Bits() != sub.Prefix.Bits():
		return sub, fmt.Errorf("address %s is in no subnet of the network", e.Addr)
	case e.MAC[0]&1 != 0 || e.MAC == overlay.MAC{}:
		return sub, fmt.Errorf("%s is not the MAC of one interface", e.MAC)
	}
	return sub, nil
}

// AddEndpoint makes what is missing of an endpoint on a network that Ensure made,
// replaces what is wrong, and announces the address on the bridge.
//
// In a container's namespace the interface gets a route to each other subnet of the
// network. It gets no default route: what leaves the network takes another
// interface. On the host itself it gets no route at all, because the subnet may be
// in use on the host's own network; see package swarmlb.
func (h Host) AddEndpoint(n overlay.Network, e Endpoint) error {
	n = n.WithDefaults()
	fail := func(err error) error { return fmt.Errorf("endpoint %s on overlay network %s: %w", e.ID, n.ID, err) }
	sub, err := e.check(n)
	if err != nil {
		return fail(err)
	}
	path := e.Netns
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	task, err := openSpace(path)
	if err != nil {
		return fail(err)
	}
	defer task.close()
	in, done, err := h.openNetwork(n.ID)
	if err != nil {
		return fail(err)
	}
	defer done()
	br, err := in.find(bridgeName(sub))
	if err != nil {
		return fail(err)
	}
	if br == nil {
		return fail(errors.New("the network has no bridge on this host: it must be made first"))
	}
	port, err := in.ensureVeth(task, n, e, br)
	if err != nil {
		return fail(err)
	}
	if err := task.configure(n, sub, e); err != nil {
		return fail(err)
	}
	if err := in.LinkSetMasterByIndex(port, br.Attrs().Index); err != nil {
		return fail(fmt.Errorf("add %s to the bridge: %w", port.Attrs().Name, err))
	}
	// Until the kernel has applied the states of the interfaces, frames are dropped,
	// with them the announcement.
	_ = task.do(func() error { bridge.Settle(e.Name); return nil })
	_ = in.do(func() error { bridge.Settle(port.Attrs().Name, vxlanName(sub), bridgeName(sub)); return nil })
	// The other ports may have learned the MAC behind the VXLAN interface, if the
	// address was used on another host.
	_ = task.do(func() error { return announce(e.Name, e.MAC, e.Addr.Addr()) })
	return nil
}

// ensureVeth returns the veth's end at the bridge, which is up.
func (s space) ensureVeth(task space, n overlay.Network, e Endpoint, br netlink.Link) (netlink.Link, error) {
	port, err := s.find(portName(e.ID))
	if err != nil {
		return nil, err
	}
	inside, err := task.find(e.Name)
	if err != nil {
		return nil, err
	}
	paired := port != nil && inside != nil && inside.Type() == "veth" &&
		inside.Attrs().ParentIndex == port.Attrs().Index && port.Attrs().ParentIndex == inside.Attrs().Index
	if paired && inside.Attrs().HardwareAddr.String() == e.MAC.String() {
		return port, s.finishPort(port, e, n)
	}
	if inside != nil && !paired {
		return nil, fmt.Errorf("the container has an interface %s already", e.Name)
	}
	if port != nil {
		// Its other end is in the namespace of an earlier life of the container, or was
		// never finished.
		if port.Attrs().Alias != "" && port.Attrs().Alias != e.ID {
			return nil, fmt.Errorf("the interface %s belongs to endpoint %s", port.Attrs().Name, port.Attrs().Alias)
		}
		if err := s.LinkDel(port); err != nil {
			return nil, fmt.Errorf("remove interface %s: %w", port.Attrs().Name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = portName(e.ID), n.MTU, br.Attrs().Index
	err = s.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: e.Name, PeerHardwareAddr: e.MAC[:], PeerMTU: uint32(n.MTU), PeerNamespace: netlink.NsFd(task.file.Fd()),
	})
	if err != nil {
		return nil, fmt.Errorf("add veth %s: %w", e.Name, err)
	}
	if port, err = s.LinkByName(attrs.Name); err != nil {
		return nil, fmt.Errorf("interface %s: %w", attrs.Name, err)
	}
	return port, s.finishPort(port, e, n)
}

func (s space) finishPort(port netlink.Link, e Endpoint, n overlay.Network) error {
	a := port.Attrs()
	if a.Alias != e.ID {
		if err := s.LinkSetAlias(port, e.ID); err != nil {
			return fmt.Errorf("describe interface %s: %w", a.Name, err)
		}
	}
	if a.MTU != n.MTU {
		if err := s.LinkSetMTU(port, n.MTU); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", n.MTU, a.Name, err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := s.LinkSetUp(port); err != nil {
			return fmt.Errorf("bring up %s: %w", a.Name, err)
		}
	}
	return nil
}

// configure sets the interface's address and routes and brings it up.
func (s space) configure(n overlay.Network, sub overlay.Subnet, e Endpoint) error {
	l, err := s.LinkByName(e.Name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", e.Name, err)
	}
	err = s.do(func() error {
		_, err := bridge.Sysctl("net/ipv6/conf/"+e.Name+"/disable_ipv6", "1")
		if errors.Is(err, os.ErrNotExist) {
			return nil // a kernel without IPv6
		}
		return err
	})
	if err != nil {
		return err
	}
	if l.Attrs().MTU != n.MTU {
		if err := s.LinkSetMTU(l, n.MTU); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", n.MTU, e.Name, err)
		}
	}
	want := &netlink.Addr{IPNet: ipNet(e.Addr.Addr(), e.Addr.Bits())}
	if e.Netns == "" {
		// An address of the whole subnet would answer for it: the kernel then sends
		// packets for the host's own neighbours in such a subnet to the overlay.
		want.IPNet.Mask = net.CIDRMask(32, 32)
	}
	have, err := dump.Whole(func() ([]netlink.Addr, error) { return s.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", e.Name, err)
	}
	missing := true
	for _, a := range have {
		if a.IPNet.String() == want.IPNet.String() {
			missing = false
		} else if err := s.AddrDel(l, &a); err != nil {
			return fmt.Errorf("remove address %s from %s: %w", a.IPNet, e.Name, err)
		}
	}
	if missing {
		if err := s.AddrAdd(l, want); err != nil {
			return fmt.Errorf("add address %s to %s: %w", want.IPNet, e.Name, err)
		}
	}
	if err := s.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up %s: %w", e.Name, err)
	}
	if e.Netns == "" {
		return nil
	}
	for _, o := range n.Subnets {
		if o.VNI == sub.VNI {
			continue
		}
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(o.Prefix.Masked().Addr(), o.Prefix.Bits()), Gw: sub.Gateway.AsSlice()}
		if err := s.RouteReplace(route); err != nil {
			return fmt.Errorf("add route to %s: %w", o.Prefix, err)
		}
	}
	return nil
}

// RemoveEndpoint removes an endpoint. One that is not there is not an error.
func (h Host) RemoveEndpoint(network, endpoint string) error {
	fail := func(err error) error {
		return fmt.Errorf("remove endpoint %s from overlay network %s: %w", endpoint, network, err)
	}
	unlock, err := h.lock()
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if !bridge.IsNamespace(h.path(network)) {
		return nil
	}
	in, err := openSpace(h.path(network))
	if err != nil {
		return fail(err)
	}
	defer in.close()
	port, err := in.find(portName(endpoint))
	if err != nil {
		return fail(err)
	}
	if port == nil || port.Attrs().Alias != "" && port.Attrs().Alias != endpoint {
		return nil
	}
	// The kernel removes the other end, too. It may just have done so with the
	// container's namespace.
	if err := in.LinkDel(port); err != nil && !errors.Is(err, unix.ENODEV) {
		return fail(err)
	}
	return nil
}

// Endpoints returns the IDs of a network's endpoints on this host.
func (h Host) Endpoints(network string) ([]string, error) {
	if !bridge.IsNamespace(h.path(network)) {
		return nil, nil
	}
	in, err := openSpace(h.path(network))
	if err != nil {
		return nil, fmt.Errorf("overlay network %s: %w", network, err)
	}
	defer in.close()
	interfaces, err := dump.Whole(in.LinkList)
	if err != nil {
		return nil, fmt.Errorf("overlay network %s: list interfaces: %w", network, err)
	}
	var ids []string
	for _, l := range interfaces {
		if l.Type() == "veth" && l.Attrs().Alias != "" {
			ids = append(ids, l.Attrs().Alias)
		}
	}
	return ids, nil
}
