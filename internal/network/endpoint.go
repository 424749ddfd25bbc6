// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/network/bridge"
	"holdfast/internal/network/ipam"
	"holdfast/internal/network/overlay"
)

// endpoint allocates an endpoint with addresses. After an error it returns what it
// has allocated.
func (a *allocation) endpoint(n *object, es *network.EndpointSettings) (Endpoint, error) {
	t := a.inv.opts.traits(n.record)
	if err := n.validate(es); err != nil {
		return Endpoint{}, err
	}
	if _, err := sysctlsOf(es); err != nil {
		return Endpoint{}, err
	}
	e := Endpoint{
		ID: randomID(), Network: n.Name, NetworkID: n.ID, Settings: es,
		Name: a.interfaceName(n.ID, t.prefix), MTU: t.mtu, Announce: t.announce.recorded(),
	}
	if es != nil && es.DriverOpts[optIfName] != "" {
		e.Name = es.DriverOpts[optIfName]
		if len(e.Name) > 15 || slices.ContainsFunc(a.s.Endpoints, func(o Endpoint) bool { return o.Name == e.Name }) {
			return Endpoint{}, errs.Invalid("invalid interface name %q: it has more than 15 characters, or the container has it on another network", e.Name)
		}
	}
	if n.Bridge != nil {
		e.Bridge, e.Isolated, e.HostName = n.Bridge.Name, !t.icc && !bridge.Filtered(), hostName(e.ID)
		e.Rules = &Rules{IPv4: a.inv.opts.Iptables, IPv6: a.inv.opts.Ip6tables, ICC: t.icc, Masquerade: t.masq, Direct: [2]bool{t.direct(0), t.direct(1)}}
	}
	if n.Overlay != nil {
		e.Overlay, e.MTU = true, cmp.Or(n.Overlay.MTU, overlay.DefaultMTU)
		if es == nil || es.IPAMConfig == nil || !es.IPAMConfig.IPv4Address.IsValid() {
			return e, errs.Forbidden("could not attach to network %s: the swarm has given the container no address on it", n.Name)
		}
	}
	if n.Parent != nil {
		e.Parent = &ParentSettings{Kind: n.Driver, Parent: n.Parent.Name, Mode: n.Parent.Mode}
		if n.Options[optMTU] == "" {
			e.MTU = 0 // the parent's MTU applies
		}
	}
	if err := a.address(&e, n, es); err != nil {
		return e, err
	}
	err := a.chooseMAC(&e, n, es)
	return e, err
}

// address allocates the addresses of an endpoint.
func (a *allocation) address(e *Endpoint, n *object, es *network.EndpointSettings) error {
	var want network.EndpointIPAMConfig
	if es != nil && es.IPAMConfig != nil {
		want = *es.IPAMConfig
	}
	var last Endpoint
	if i := slices.IndexFunc(a.r.Last, func(o Endpoint) bool { return o.NetworkID == n.ID }); i >= 0 {
		last = a.r.Last[i]
	}
	for _, f := range []struct {
		on, v6     bool
		want, last netip.Addr
		to         *Addressing
	}{
		{n.EnableIPv4, false, want.IPv4Address, last.IPv4.Address.Addr(), &e.IPv4},
		{n.EnableIPv6, true, want.IPv6Address, last.IPv6.Address.Addr(), &e.IPv6},
	} {
		if !f.on || f.v6 && (a.r.NoIPv6 || withoutIPv6(es)) {
			continue
		}
		got, err := n.allocate(f.v6, f.want, f.last)
		if err != nil {
			return err
		}
		*f.to = got
	}
	return nil
}

// chooseMAC chooses the hardware address of an endpoint.
func (a *allocation) chooseMAC(e *Endpoint, n *object, es *network.EndpointSettings) error {
	switch {
	case e.Parent != nil && e.Parent.Kind == driverIPvlan:
		// An ipvlan interface has the parent's MAC.
	case es != nil && len(es.MacAddress) > 0:
		e.MAC = es.MacAddress.String()
		if other := a.inv.hasMAC(n, e.MAC); other != "" {
			return errs.Conflict("MAC address %s is already in use on network %s by container %s: packets to either container would be lost; give each container its own MAC address", e.MAC, n.Name, other)
		}
	case e.IPv4.Address.IsValid():
		e.MAC = macOf(e.IPv4.Address.Addr()).String()
	case e.IPv6.Address.IsValid():
		e.MAC = macOf(e.IPv6.Address.Addr()).String()
	default:
		e.MAC = randomMAC().String()
	}
	// Another container may have been given this MAC explicitly.
	for e.MAC != "" && a.inv.hasMAC(n, e.MAC) != "" {
		e.MAC = randomMAC().String()
	}
	return nil
}

// interfaceName returns the name of the container's interface on a network: that of its
// last run, or the first free one that no other network had then.
func (a *allocation) interfaceName(network, prefix string) string {
	used := func(name string) bool {
		return slices.ContainsFunc(a.s.Endpoints, func(e Endpoint) bool { return e.Name == name })
	}
	asked := func(e Endpoint) bool {
		return a.r.Mode == e.Network || a.r.Mode == e.NetworkID || a.r.Endpoints[e.Network] != nil || a.r.Endpoints[e.NetworkID] != nil
	}
	for _, e := range a.r.Last {
		if e.NetworkID == network && strings.HasPrefix(e.Name, prefix) && !used(e.Name) {
			return e.Name
		}
	}
	for i := 0; ; i++ {
		name := prefix + strconv.Itoa(i)
		if !used(name) && !slices.ContainsFunc(a.r.Last, func(e Endpoint) bool { return e.Name == name && e.NetworkID != network && asked(e) }) {
			return name
		}
	}
}

// hostName returns the name of an endpoint's interface on the host.
func hostName(endpoint string) string { return "veth" + endpoint[:11] }

// allocate takes an address: the wanted one; otherwise the container's last one
// if it is free; otherwise the next free one.
func (n *object) allocate(v6 bool, want, last netip.Addr) (Addressing, error) {
	if !want.IsValid() && last.IsValid() {
		if a, err := n.allocate(v6, last, netip.Addr{}); err == nil {
			return a, nil
		}
	}
	var found bool
	for i, a := range n.allocators {
		sub := n.Subnets[i]
		if sub.Prefix.Addr().Is6() != v6 || want.IsValid() && !a.Contains(want) {
			continue
		}
		found = true
		addr, err := want, error(nil)
		if want.IsValid() {
			err = a.Reserve(want)
		} else {
			addr, err = a.Next()
		}
		if errors.Is(err, ipam.ErrExhausted) {
			continue
		}
		if err != nil {
			return Addressing{}, errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
		out := Addressing{Address: netip.PrefixFrom(addr, sub.Prefix.Bits())}
		if !n.Internal && n.Overlay == nil { // an overlay leads to no other hosts
			out.Gateway = sub.Gateway
		}
		if sub.Bridge.IsValid() {
			out.BridgeAddress = netip.PrefixFrom(sub.Bridge, sub.Prefix.Bits())
		}
		return out, nil
	}
	if want.IsValid() && !found {
		return Addressing{}, errs.Invalid("invalid endpoint settings:\nno configured subnet contains IP address %s", want)
	}
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	return Addressing{}, errdefs.ErrResourceExhausted.WithMessage(fmt.Sprintf("no available %s addresses on this network's address pools: %s (%s)", family, n.Name, n.ID))
}

// hasMAC returns the short ID of the container that has a hardware address on a
// network.
func (v *inventory) hasMAC(n *object, mac string) string {
	for id, s := range v.sandboxes {
		for _, e := range s.Endpoints {
			if e.NetworkID == n.ID && e.MAC == mac {
				return id[:min(12, len(id))]
			}
		}
	}
	return ""
}

// forgetSandbox releases what a sandbox has allocated in memory.
func (v *inventory) forgetSandbox(s Sandbox) {
	for _, e := range s.Endpoints {
		v.forgetEndpoint(e)
	}
	v.ports.drop(s.Ports, s.Container)
}

func (v *inventory) forgetEndpoint(e Endpoint) {
	n := v.networks[e.Network]
	if n == nil {
		return
	}
	for _, a := range []Addressing{e.IPv4, e.IPv6} {
		for _, alloc := range n.allocators {
			if a.Address.IsValid() && !v.reallocated(e, a.Address) {
				alloc.Release(a.Address.Addr())
			}
		}
	}
}

// reallocated reports whether an endpoint's address was released before and
// belongs to another endpoint now.
func (v *inventory) reallocated(e Endpoint, address netip.Prefix) bool {
	for _, s := range v.sandboxes {
		for _, o := range s.Endpoints {
			if o.NetworkID == e.NetworkID && o.ID != e.ID && (o.IPv4.Address == address || o.IPv6.Address == address) {
				return true
			}
		}
	}
	return false
}
