// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
)

// This file sets what the host accepts from the other side of a bridge.
// Containers are there, so it accepts nothing: it learns no routers, follows no
// redirects, and takes no source routes. docs/networks.md says which settings are
// left alone, and why.

// harden sets the kernel's settings of a bridge.
func harden(h *netlink.Handle, link netlink.Link, b Bridge) (changed bool, err error) {
	ipv4, ipv6 := "net/ipv4/conf/"+b.Name+"/", "net/ipv6/conf/"+b.Name+"/"
	// Containers may answer for the host's 127.0.0.1. The packet filter keeps
	// others from abusing that.
	want := [][2]string{{ipv4 + "route_localnet", "1"}}
	wayOut := false
	if b.Exact {
		want = append(want, [2]string{ipv4 + "accept_redirects", "0"}, [2]string{ipv4 + "accept_source_route", "0"})
	} else if wayOut, err = outward(h, link); err != nil {
		return false, err
	}
	if changed, err = setAll(want); err != nil {
		return changed, err
	}
	if !hasIPv6() {
		if b.IPv6 {
			return changed, errors.New("the kernel has no IPv6")
		}
		return changed, nil
	}
	if !wayOut {
		c, err := ignoreRouters(b.Name)
		changed = changed || c
		if err != nil {
			return changed, err
		}
		if c {
			if err := forgetRouters(h, link); err != nil {
				return changed, err
			}
		}
	}
	disable := "0"
	switch {
	case b.IPv6:
	case b.Exact:
		disable = "1"
	default:
		return changed, nil // the user's bridge, which may use IPv6
	}
	c, err := sysctl(ipv6+"disable_ipv6", disable)
	if !b.IPv6 {
		err = gone(err) // on a link with an MTU below 1280 the kernel has no IPv6
	}
	return changed || c, err
}

// AnswerForNeighbours makes the host answer for the IPv4 addresses of a bridge's
// isolated ports to each other (proxy_arp_pvlan, RFC 3069). Their traffic then
// passes through the host, whose packet filter decides.
func AnswerForNeighbours(name string) error {
	_, err := sysctl("net/ipv4/conf/"+name+"/proxy_arp_pvlan", "1")
	return err
}

// HardenPort sets the kernel's settings of the host's end of a veth.
// The bridge receives its packets, and the host itself does not communicate by
// it. A missing interface is not an error. It only writes settings that differ.
func HardenPort(name string) (changed bool, err error) {
	if !hasIPv6() {
		return false, nil
	}
	changed, err = ignoreRouters(name)
	if err != nil {
		return changed, err
	}
	c, err := sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1")
	return changed || c, gone(err)
}

// ignoreRouters keeps the host from accepting router advertisements and redirects
// on an interface. A missing interface is not an error.
func ignoreRouters(name string) (changed bool, err error) {
	if !hasIPv6() {
		return false, nil
	}
	changed, err = setAll([][2]string{
		{"net/ipv6/conf/" + name + "/accept_ra", "0"},
		{"net/ipv6/conf/" + name + "/accept_redirects", "0"},
	})
	return changed, gone(err)
}

// IgnoreRouters keeps the host from accepting router advertisements and redirects
// on an interface that the engine made. It reports whether a setting had to be
// changed. A missing interface is not an error.
func IgnoreRouters(name string) (changed bool, err error) { return ignoreRouters(name) }

func setAll(want [][2]string) (changed bool, err error) {
	for _, w := range want {
		c, err := sysctl(w[0], w[1])
		changed = changed || c
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// hasIPv6 reports whether the thread's network namespace has IPv6.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf")
	return err == nil
}

// outward reports whether a bridge that the engine did not make may be the host's
// uplink: it has a port that is neither a veth nor a tun interface, or the host
// learned a route from a router on it.
func outward(h *netlink.Handle, link netlink.Link) (bool, error) {
	links, err := dump.Whole(listLinks)
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.master == link.Attrs().Index && l.kind != "veth" && l.kind != "tun" {
			return true, nil
		}
	}
	learnt, err := routersBy(h, link)
	return len(learnt) > 0, err
}

// routersBy returns the routes that the host learned from routers on an
// interface.
func routersBy(h *netlink.Handle, link netlink.Link) ([]netlink.Route, error) {
	routes, err := dump.Whole(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: unix.RTPROT_RA},
			netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// forgetRouters removes the routes that were learned before router advertisements
// were ignored. Ensure removes the addresses that came with them, if the bridge
// is Exact.
func forgetRouters(h *netlink.Handle, link netlink.Link) error {
	routes, err := routersBy(h, link)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %s that a router advertised: %w", r, err)
		}
	}
	return nil
}
