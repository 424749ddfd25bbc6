// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
)

// announce sends the interfaces' addresses to their neighbours, as a gratuitous ARP
// request (RFC 5227, section 3) and an unsolicited neighbour advertisement (RFC
// 4861, section 7.2.6). Neighbours may still have the hardware address of a
// container that had an address a moment ago, and would only ask again after half
// a minute. Call it on a thread in the container's namespace. It ignores errors:
// a neighbour that misses the announcement asks sooner or later.
func announce(list []Interface) {
	for _, l := range list {
		if !l.Quiet {
			_ = announceOne(l)
		}
	}
}

// Announce announces the addresses of an interface in the network namespace at
// path once more. An interface without a MAC is announced with the MAC that it has
// now.
func Announce(path string, l Interface) error {
	return osthread.RunInNetns(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		return inNamespace(ns, nil, func() error { return announceOne(l) })
	})
}

func announceOne(l Interface) error {
	ifi := &net.Interface{HardwareAddr: l.MAC}
	var err error
	if len(l.MAC) != 6 {
		link, err := netlink.LinkByName(l.Name)
		if err != nil {
			return err
		}
		ifi.Index, ifi.HardwareAddr = link.Attrs().Index, link.Attrs().HardwareAddr
	} else if ifi.Index, err = indexOf(l.Name); err != nil {
		return err
	}
	for _, a := range l.Addrs {
		frame, err := announcement(ifi.HardwareAddr, a.Addr())
		if err == nil {
			err = SendFrame(ifi.Index, frame)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SendFrame sends an Ethernet frame by an interface of the thread's network
// namespace.
func SendFrame(index int, frame []byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	// The kernel ends a packet socket only after an RCU grace period (packet_release in
	// net/packet/af_packet.c): 4 to 20 ms, more the more namespaces there are. The start
	// of a container does not wait for it.
	defer func() { go unix.Close(fd) }()
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6})
}

// Announcement returns the Ethernet frame that announces that an address is at a
// hardware address.
func Announcement(mac net.HardwareAddr, addr netip.Addr) ([]byte, error) {
	return announcement(mac, addr)
}

// announcement returns the Ethernet frame that announces that an address is at a
// hardware address.
func announcement(mac net.HardwareAddr, addr netip.Addr) ([]byte, error) {
	if len(mac) != 6 {
		return nil, unix.EINVAL
	}
	ip := addr.AsSlice()
	if addr.Is4() {
		f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
		f = binary.BigEndian.AppendUint16(f, unix.ETH_P_ARP)
		f = append(f, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, their address lengths, a request
		f = append(append(f, mac...), ip...)
		return append(append(f, make([]byte, 6)...), ip...), nil
	}
	all := netip.MustParseAddr("ff02::1").As16()
	// Type 136 with the override flag, then the target and its link-layer address.
	body := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, ip...)
	body = append(append(body, 2, 1), mac...)
	binary.BigEndian.PutUint16(body[2:], checksum(ip, all[:], unix.IPPROTO_ICMPV6, body))
	f := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_IPV6)
	f = append(f, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(body)))
	f = append(f, unix.IPPROTO_ICMPV6, 255)
	return append(append(append(f, ip...), all[:]...), body...), nil
}

// checksum returns the checksum of an upper-layer packet over IPv6 (RFC 8200,
// section 8.1).
func checksum(src, dst []byte, proto byte, body []byte) uint16 {
	pseudo := append(append([]byte{}, src...), dst...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(body)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	var sum uint32
	for _, part := range [][]byte{pseudo, body} { // both have an even length
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
