// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/network/nft"
)

// publish reserves the host ports that the request asks for. After an error it has
// closed their sockets.
func (a *allocation) publish() (err error) {
	defer func() { a.closeOnError(err) }()
	if a.s.gateway(false) < 0 && a.s.gateway(true) < 0 {
		return nil // without a gateway nothing can reach the container
	}
	for _, p := range a.s.Exposed {
		bindings := a.r.PortBindings[p]
		if len(bindings) == 0 {
			if _, bound := a.r.PortBindings[p]; !bound && !a.r.PublishAll {
				continue
			}
			bindings = []network.PortBinding{{}}
		}
		if proto := p.Proto(); proto != network.TCP && proto != network.UDP && proto != network.SCTP {
			return errs.Invalid("invalid port %s: unknown protocol", p)
		}
		if p.Num() == 0 {
			return errs.Invalid("invalid port %s: want 1 to 65535", p)
		}
		for _, b := range bindings {
			ms, files, err := a.reserve(p, b)
			if err != nil {
				return err
			}
			a.addPorts(ms, files)
		}
	}
	return nil
}

// publishMore reserves the host ports that needed an IPv4 address: those on the
// host's IPv4, since the host's IPv6 ports lead to either family. They get the
// numbers that the container has on IPv6. After an error it has closed their
// sockets.
func (a *allocation) publishMore() (err error) {
	defer func() { a.closeOnError(err) }()
	for _, have := range slices.Clone(a.s.Ports) {
		p, ok := network.PortFrom(have.ContainerPort, network.IPProtocol(have.Proto))
		if !ok || have.HostPort == 0 || have.HostIP != netip.IPv6Unspecified() || askedFor(a.r.PortBindings[p], have) {
			continue
		}
		ms, _, err := a.mappings(p, netip.Addr{})
		if err != nil {
			continue // the container still has no IPv4 address
		}
		for _, more := range ms {
			more.HostPort = have.HostPort
			if slices.ContainsFunc(a.s.Ports, func(o PortMapping) bool {
				return o.Proto == more.Proto && o.HostIP == more.HostIP && o.HostPort == more.HostPort
			}) {
				continue
			}
			files, err := a.inv.ports.reserve([]PortMapping{more}, a.s.Container, a.inv.opts.UserlandProxy)
			if err != nil {
				return err
			}
			a.addPorts([]PortMapping{more}, files)
		}
	}
	return nil
}

// addPorts adds ports that were reserved, with their sockets.
func (a *allocation) addPorts(ms []PortMapping, files []*os.File) {
	a.s.Ports = append(a.s.Ports, ms...)
	for i, f := range files {
		if f != nil {
			a.reserved = append(a.reserved, Reserved{Proto: ms[i].Proto, Target: a.inv.opts.target(ms[i]), File: f})
		}
	}
}

// closeOnError closes the sockets of the reserved ports if err is not nil.
func (a *allocation) closeOnError(err error) {
	if err == nil {
		return
	}
	for _, r := range a.reserved {
		r.File.Close()
	}
	a.reserved = nil
}

// askedFor reports whether one of a port's bindings names the mapping's address
// of the host.
func askedFor(bindings []network.PortBinding, p PortMapping) bool {
	return slices.ContainsFunc(bindings, func(b network.PortBinding) bool {
		first, last, err := ParseHostPort(b.HostPort)
		return err == nil && b.HostIP == p.HostIP && (first == 0 || first <= p.HostPort && p.HostPort <= last)
	})
}

// reserve reserves the port of one binding on each of its addresses.
func (a *allocation) reserve(p network.Port, b network.PortBinding) ([]PortMapping, []*os.File, error) {
	first, last, err := ParseHostPort(b.HostPort)
	if err != nil {
		return nil, nil, err
	}
	ms, direct, err := a.mappings(p, b.HostIP)
	if err != nil {
		return nil, nil, err
	}
	if len(direct) > 0 && len(ms) == 0 && (first != 0 || b.HostIP.IsValid() && !b.HostIP.IsUnspecified()) {
		a.inv.opts.Log.Warn("the network is routed: a published port is reached at the container's address, the host's address and port are not used",
			"container", a.s.Container, "port", p, "host", b.HostIP, "hostPort", b.HostPort)
	}
	if len(ms) == 0 {
		return direct, make([]*os.File, len(direct)), nil
	}
	tries := int(last) - int(first) + 1
	chosen := first == 0
	if chosen {
		tries = int(a.inv.ports.last) - int(a.inv.ports.first) + 1
	}
	for i := range tries {
		port := first + uint16(i)
		if chosen {
			port = a.inv.ports.next()
		}
		for j := range ms {
			ms[j].HostPort = port
		}
		files, err := a.inv.ports.reserve(ms, a.s.Container, a.inv.opts.UserlandProxy)
		if err == nil {
			return append(ms, direct...), append(files, make([]*os.File, len(direct))...), nil
		}
		if !errors.As(err, new(errInUse)) {
			return nil, nil, err
		}
		if first == last && !chosen {
			return nil, nil, err
		}
	}
	if chosen {
		return nil, nil, errdefs.ErrResourceExhausted.WithMessage(fmt.Sprintf("all ports from %d to %d are allocated", a.inv.ports.first, a.inv.ports.last))
	}
	return nil, nil, errdefs.ErrInternal.WithMessage(fmt.Sprintf("Bind for %s failed: all ports of the range %s are allocated", ms[0].HostIP, b.HostPort))
}

// mappings returns the host addresses that a port is published on. Without a host
// address that is all of them, IPv6 included: where the container has no IPv6
// address, or the kernel can't translate, the shim forwards.
//
// The target is the container's address on the network of its default route. On a
// routed network the port is only reachable at the container's address: such
// mappings are returned in direct, and have no host port.
func (a *allocation) mappings(p network.Port, host netip.Addr) (out, direct []PortMapping, err error) {
	e, routed := a.routes()
	if !host.IsValid() {
		host = a.inv.opts.DefaultBindIP
		if n := a.inv.networks[e.Network]; n != nil {
			host = a.inv.opts.traits(n.record).bindIP
		}
		if host.Unmap() == netip.IPv4Unspecified() {
			host = netip.Addr{} // as a default it means all addresses, IPv6 included
		}
	}
	host = host.Unmap()
	hosts := []netip.Addr{host}
	if !host.IsValid() {
		hosts = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	for _, h := range hosts {
		target := e.IPv4.Address.Addr()
		if h.Is6() && e.IPv6.Address.IsValid() {
			target = e.IPv6.Address.Addr()
		}
		if !target.IsValid() {
			continue
		}
		m := PortMapping{Proto: string(p.Proto()), ContainerPort: p.Num(), HostIP: h, Target: netip.AddrPortFrom(target, p.Num())}
		if routed[nft.FamilyOf(target)] {
			if target.Is4() == h.Is4() {
				m.HostIP = anyOf(target)
				direct = append(direct, m)
			}
			continue
		}
		if len(hosts) > 1 && h.Is6() && (!a.translates(h, target) && !a.inv.opts.UserlandProxy || !hostHasIPv6()) {
			continue
		}
		out = append(out, m)
	}
	if len(out)+len(direct) == 0 {
		return nil, nil, errs.Invalid("can't publish %s on %s: the container has no address of that family", p, host)
	}
	return out, direct, nil
}

// routes returns the addresses of the container's default routes, by family, and
// whether their networks are routed. The network is that of IPv4.
func (a *allocation) routes() (e Endpoint, routed [2]bool) {
	for family, v6 := range []bool{false, true} {
		i := a.s.gateway(v6)
		if i < 0 {
			continue
		}
		if n := a.inv.networks[a.s.Endpoints[i].Network]; n != nil {
			routed[family] = a.inv.opts.traits(n.record).access[family] == nft.Routed
		}
		if v6 {
			e.IPv6 = a.s.Endpoints[i].IPv6
		} else {
			e.Network, e.IPv4 = a.s.Endpoints[i].Network, a.s.Endpoints[i].IPv4
		}
	}
	return e, routed
}

// translates reports whether the kernel translates a host address to a target.
func (a *allocation) translates(host, target netip.Addr) bool {
	filtered := host.Is4() && a.inv.opts.Iptables || host.Is6() && a.inv.opts.Ip6tables
	return filtered && target.Is4() == host.Is4() && host != netip.IPv6Loopback()
}

// anyOf returns the unspecified address of an address's family.
func anyOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func sortPorts(ps []network.Port) {
	slices.SortFunc(ps, func(a, b network.Port) int {
		if a.Num() != b.Num() {
			return int(a.Num()) - int(b.Num())
		}
		return strings.Compare(string(a.Proto()), string(b.Proto()))
	})
}
