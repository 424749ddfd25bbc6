// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// conn is a rtnetlink socket of the network namespace in which the thread dialled
// it. With two of them, six requests create a container's interface. The
// library's own functions would need about twelve.
type conn struct{ sockets map[int]*nl.SocketHandle }

func dial() (*conn, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	// The kernel's message about a refused request is useful for errors. Without it
	// the error has only the number.
	_ = s.SetExtAck(true)
	return &conn{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (c *conn) Close() { c.sockets[unix.NETLINK_ROUTE].Close() }

func (c *conn) do(typ, flags int, data ...nl.NetlinkRequestData) error {
	req := nl.NewNetlinkRequest(typ, flags|unix.NLM_F_ACK)
	req.Sockets = c.sockets
	for _, d := range data {
		req.AddData(d)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (c *conn) up(index int) error {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	return c.do(unix.RTM_NEWLINK, 0, msg)
}

// describe sets a link's description.
func (c *conn) describe(index int, text string) error {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	return c.do(unix.RTM_NEWLINK, 0, msg, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(text)))
}

// upOwned is up and describe in one request.
func (c *conn) upOwned(index int, text string) error {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	return c.do(unix.RTM_NEWLINK, 0, msg, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(text)))
}

// addVeth creates both ends of a veth: the host's end as a port of the bridge,
// the container's end in its namespace. Neither end is up yet, so that the host's
// end is hardened before it receives anything.
func (c *conn) addVeth(l Interface, bridge, netns int) error {
	mtu := nl.Uint32Attr(uint32(l.MTU))
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)

	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(l.Name))
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	if len(l.MAC) > 0 {
		peer.AddRtAttr(unix.IFLA_ADDRESS, l.MAC)
	}
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(netns)))

	return c.do(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, msg,
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(l.HostName)),
		nl.NewRtAttr(unix.IFLA_MTU, mtu),
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))),
		info)
}

// port sets the bridge's options of a port. Hairpin mode lets a frame leave by
// the port that it came from. With br_netfilter it is needed for a container that
// reaches its own published port: the frame is sent back below the routing layer.
func (c *conn) port(index int, isolated bool) error {
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_MODE, []byte{1})
	if isolated {
		info.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, []byte{1})
	}
	return c.do(unix.RTM_SETLINK, 0, msg, info)
}

func (c *conn) setMaster(index, bridge int) error {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	return c.do(unix.RTM_NEWLINK, 0, msg, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
}

func (c *conn) delLink(index int) error {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	return c.do(unix.RTM_DELLINK, 0, msg)
}

// link holds the fields that are used of a host interface.
type link struct {
	name, kind    string
	description   string
	index, master int
	flags         uint32
	hardened      bool // it has the settings of HardenPort
}

// skipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStats = 1 << 3

// listLinks lists the interfaces. It asks the kernel to omit the counters, which
// are most of the answer and take it longest to collect, and parses only the
// fields of link: a host has as many interfaces as containers run.
func listLinks() ([]link, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	links := make([]link, 0, len(messages))
	for _, m := range messages {
		l, err := parseLink(m)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

// parseLink parses a struct ifinfomsg with its attributes (rtnetlink(7)).
func parseLink(m []byte) (l link, err error) {
	if len(m) < unix.SizeofIfInfomsg {
		return l, fmt.Errorf("an interface in %d bytes", len(m))
	}
	info := nl.DeserializeIfInfomsg(m)
	l.index, l.flags = int(info.Index), info.Flags
	err = attributes(m[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) error {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(value)
		case unix.IFLA_IFALIAS:
			l.description = unix.ByteSliceToString(value)
		case unix.IFLA_MASTER:
			if len(value) >= 4 {
				l.master = int(binary.NativeEndian.Uint32(value))
			}
		case unix.IFLA_LINKINFO:
			return attributes(value, func(kind uint16, value []byte) error {
				if kind == nl.IFLA_INFO_KIND {
					l.kind = unix.ByteSliceToString(value)
				}
				return nil
			})
		case unix.IFLA_AF_SPEC:
			l.hardened, err = hardened(value)
			return err
		}
		return nil
	})
	return l, err
}

// Indexes of an interface's IPv6 settings in IFLA_INET6_CONF, from linux/ipv6.h.
const (
	confAcceptRA        = 3
	confAcceptRedirects = 4
	confDisableIPv6     = 26
)

// hardened reports whether IFLA_AF_SPEC, the part of a link message that each address
// family fills, has the settings that HardenPort makes. It is false if the
// kernel does not report them.
func hardened(spec []byte) (is bool, err error) {
	err = attributes(spec, func(family uint16, value []byte) error {
		if family != unix.AF_INET6 {
			return nil
		}
		return attributes(value, func(kind uint16, conf []byte) error {
			if kind == unix.IFLA_INET6_CONF && len(conf) >= 4*(confDisableIPv6+1) {
				setting := func(i int) uint32 { return binary.NativeEndian.Uint32(conf[4*i:]) }
				is = setting(confAcceptRA) == 0 && setting(confAcceptRedirects) == 0 && setting(confDisableIPv6) == 1
			}
			return nil
		})
	})
	return is, err
}

// attributes calls each for every attribute (struct rtattr) of a message.
func attributes(b []byte, each func(kind uint16, value []byte) error) error {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return fmt.Errorf("an attribute of %d bytes in %d", n, len(b))
		}
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := each(kind, b[unix.SizeofRtAttr:n]); err != nil {
			return err
		}
		b = b[min(len(b), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return nil
}

// filterFrames passes frames between the bridge's ports to the packet filter. The
// switch is that of the one bridge, so no other bridge is affected.
func filterFrames(bridge int) error {
	err := setBridge(bridge, func(options *nl.RtAttr) {
		options.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, []byte{1})
		options.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, []byte{1})
	})
	if err != nil {
		return fmt.Errorf("filter frames between ports: %w", err)
	}
	return nil
}

// dontDelay sets the forward delay to zero. A bridge without the spanning tree
// protocol forwards at once anyway, but the kernel would notify all listeners of
// each port once more when the delay has passed.
func dontDelay(bridge int) error {
	err := setBridge(bridge, func(options *nl.RtAttr) {
		options.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	})
	if err != nil {
		return fmt.Errorf("set forward delay: %w", err)
	}
	return nil
}

// setBridge changes options of a bridge, IFLA_BR_* of linux/if_link.h.
func setBridge(bridge int, add func(options *nl.RtAttr)) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(bridge)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	add(info.AddRtAttr(nl.IFLA_INFO_DATA, nil))
	return c.do(unix.RTM_NEWLINK, 0, msg, info)
}

// addAddress adds an address without duplicate address detection: the engine
// allocated it, and a container must not wait a second for it.
func (c *conn) addAddress(index int, p netip.Prefix) error {
	family := unix.AF_INET
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Prefixlen, msg.Index = uint8(p.Bits()), uint32(index)
	ip := p.Addr().AsSlice()
	data := []nl.NetlinkRequestData{msg, nl.NewRtAttr(unix.IFA_LOCAL, ip), nl.NewRtAttr(unix.IFA_ADDRESS, ip)}
	if p.Addr().Is6() {
		msg.Flags = unix.IFA_F_NODAD
	} else if p.Bits() < 31 {
		data = append(data, nl.NewRtAttr(unix.IFA_BROADCAST, lastAddr(p)))
	}
	return c.do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, data...)
}

// setDefaultRoute replaces the default route of the gateway's family. With the
// unspecified address the route has no next hop.
func (c *conn) setDefaultRoute(index int, gateway netip.Addr) error {
	msg := nl.NewRtMsg()
	msg.Family = unix.AF_INET
	if gateway.Is6() {
		msg.Family = unix.AF_INET6
	}
	if gateway.IsUnspecified() {
		msg.Scope = unix.RT_SCOPE_LINK
		return c.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, msg,
			nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	}
	return c.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, msg,
		nl.NewRtAttr(unix.RTA_GATEWAY, gateway.AsSlice()),
		nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
}

// indexOf returns the index of an interface of the thread's network namespace, or
// ENODEV. It does not list all interfaces.
func indexOf(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("interface name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

func lastAddr(p netip.Prefix) []byte {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return b
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func fromIPNet(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	addr = addr.Unmap()
	return netip.PrefixFrom(addr, ones), ok && ones <= addr.BitLen()
}
