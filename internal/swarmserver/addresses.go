// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"holdfast/internal/errs"
	"holdfast/internal/network/dump"
	"holdfast/internal/swarmserver/mesh"
)

// defaultPort is the port of managers.
const defaultPort = "2377"

// hostPort splits an address whose port may be missing.
func hostPort(addr, port string) (string, string) {
	if h, p, err := net.SplitHostPort(addr); err == nil {
		return h, p
	}
	return addr, port
}

// withPort adds the default port to an address without one.
func withPort(addr string) string {
	host, port := hostPort(addr, defaultPort)
	return net.JoinHostPort(host, port)
}

// address is an IP address, or that of an interface.
func address(host string, unspecified bool, wrong error) (string, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsUnspecified() && !unspecified {
			return "", wrong
		}
		return host, nil
	}
	i, err := netlink.LinkByName(host)
	if err != nil {
		return "", wrong
	}
	v4, v6, err := addresses(i)
	switch {
	case err != nil:
		return "", err
	case len(v4) > 1:
		return "", errs.Invalid("interface %s has more than one IPv4 address (%s and %s)", host, v4[0], v4[1])
	case len(v4) == 1:
		return v4[0].String(), nil
	case len(v6) > 1:
		return "", errs.Invalid("interface %s has more than one IPv6 address (%s and %s)", host, v6[0], v6[1])
	case len(v6) == 1:
		return v6[0].String(), nil
	}
	return "", errs.Invalid("interface %s has no usable IPv4 or IPv6 address", host)
}

// addresses are those of an interface, without link-local ones.
func addresses(i netlink.Link) (v4, v6 []netip.Addr, err error) {
	all, err := dump.Addrs(i, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list the addresses of interface %s: %w", i.Attrs().Name, err)
	}
	for _, a := range all {
		addr, ok := netip.AddrFromSlice(a.IP)
		switch addr = addr.Unmap(); {
		case !ok, addr.IsLinkLocalUnicast():
		case addr.Is4():
			v4 = append(v4, addr)
		default:
			v6 = append(v6, addr)
		}
	}
	return v4, v6, nil
}

// listenAddr is the address at which a manager listens.
func listenAddr(addr string) (host, port string, err error) {
	if addr == "" {
		return "", "", errs.Invalid("invalid ListenAddr \"\": invalid empty address")
	}
	host, port = hostPort(addr, defaultPort)
	host, err = address(host, true, errs.Invalid("listen address must be an IP address or network interface (with optional port number)"))
	return host, port, err
}

// advertiseAddr is the address at which other nodes reach this one. Without a wish it
// is the only address of the host that is not on a bridge.
func advertiseAddr(addr, listenPort string) (host, port string, err error) {
	if addr == "" {
		host, err = systemAddr()
		return host, listenPort, err
	}
	host, port = hostPort(addr, listenPort)
	host, err = address(host, false, errs.Invalid("advertise address must be a non-zero IP address or network interface (with optional port number)"))
	return host, port, err
}

func dataPathAddr(addr string) (string, error) {
	if addr == "" {
		return "", nil
	}
	return address(addr, false, errs.Invalid("data path address must be a non-zero IP address or network interface (without a port number)"))
}

// localAddr is the address from which this host reaches another.
func localAddr(remote string) (string, error) {
	c, err := net.Dial("udp", remote)
	if err != nil {
		return "", errs.Invalid("could not find local IP address: %s", err)
	}
	defer c.Close()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	return host, err
}

// systemAddr is the host's only address that other hosts may reach.
func systemAddr() (string, error) {
	all, err := dump.Interfaces()
	if err != nil {
		return "", fmt.Errorf("list interfaces: %w", err)
	}
	var found netip.Addr
	var on string
	for _, l := range all {
		i := l.Attrs()
		if l.Type() == "bridge" || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		v4, v6, err := addresses(l)
		if err != nil {
			return "", err
		}
		if len(v4) == 0 {
			v4 = v6
		}
		for _, a := range v4 {
			switch {
			case !found.IsValid():
				found, on = a, i.Name
			case on == i.Name:
				return "", errs.Invalid("could not choose an IP address to advertise since this system has multiple addresses on interface %s (%s and %s) - specify one with --advertise-addr", on, found, a)
			default:
				return "", errs.Invalid("could not choose an IP address to advertise since this system has multiple addresses on different interfaces (%s on %s and %s on %s) - specify one with --advertise-addr", found, on, a, i.Name)
			}
		}
	}
	if !found.IsValid() {
		return "", errs.Invalid("could not find the system's IP address - specify one with --advertise-addr")
	}
	return found.String(), nil
}

// checkPools checks the address pools of overlay networks.
func checkPools(pools []netip.Prefix, size uint32) error {
	if size == 0 {
		size = 24
	}
	if len(pools) > 0 && size > 29 {
		return errs.Invalid("subnet size is out of range: %d", size)
	}
	for _, p := range pools {
		if int(size) < p.Bits() {
			return errs.Invalid("invalid CIDR: %q. Subnet size is too small for pool: %d", p, size)
		}
	}
	return nil
}

// address is the address at which other nodes reach this one. One that no request has
// named follows the host's: an address that the host has no more is replaced by the one
// from which it reaches a manager now.
func (v view) address() string {
	if v.conf.AdvertiseAddr != "" {
		host, _ := hostPort(v.conf.AdvertiseAddr, "")
		return host
	}
	if has(v.conf.LocalAddr) {
		return v.conf.LocalAddr
	}
	remotes := []string{v.conf.RemoteAddr}
	if v.node != nil {
		for _, p := range v.node.Remotes() {
			remotes = append(remotes, p.Addr)
		}
	}
	for _, remote := range remotes {
		if now, err := localAddr(remote); err == nil && remote != "" {
			return now
		}
	}
	return v.conf.LocalAddr
}

// has reports whether this host has an address.
func has(addr string) bool {
	c, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
	if err == nil {
		c.Close()
	}
	return err == nil
}

// where is the place of this node in the gossip of its swarm.
func (s *server) where() mesh.Address {
	v, in := s.view()
	if !in || v.node == nil {
		return mesh.Address{}
	}
	host := func(addr string) string {
		h, _ := hostPort(addr, "")
		return h
	}
	a := mesh.Address{Listen: host(v.conf.ListenAddr), Advertise: v.address(), DataPath: v.conf.DataPathAddr}
	for _, p := range v.node.Remotes() {
		if p.NodeID != v.node.NodeID() {
			a.Remotes = append(a.Remotes, host(p.Addr))
		}
	}
	return a
}
