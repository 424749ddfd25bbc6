// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"holdfast/internal/network/dump"
)

// Inside is an interface in a network namespace, as the kernel reports it.
type Inside struct {
	Name  string
	MAC   string
	MTU   int // bytes
	Peer  int // index of its peer, on the host
	Addrs []netip.Prefix
}

// Look lists the veths of the namespace at path with their global addresses.
func Look(path string) ([]Inside, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer h.Close()
	links, err := dump.Whole(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: list interfaces: %w", path, err)
	}
	var out []Inside
	for _, l := range links {
		if l.Type() != "veth" {
			continue
		}
		a := l.Attrs()
		in := Inside{Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU, Peer: a.ParentIndex}
		addrs, err := dump.Whole(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, fmt.Errorf("network namespace %s: addresses of %s: %w", path, a.Name, err)
		}
		for _, addr := range addrs {
			ip, ok := netip.AddrFromSlice(addr.IP)
			if ones, _ := addr.Mask.Size(); ok && addr.IP.IsGlobalUnicast() {
				in.Addrs = append(in.Addrs, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
		out = append(out, in)
	}
	return out, nil
}
