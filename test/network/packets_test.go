// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func parseIP(s string) net.IP { return net.ParseIP(s) }

func parseAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

func netParse(c *container) (net.IP, *net.IPNet, error) {
	return net.ParseCIDR(c.Endpoints[0].IPv4.Address.String())
}

// count listens in a namespace. It returns a function that waits for a packet
// and returns the number of packets received.
func (h *host) count(path, network, addr string) func(patience time.Duration) int {
	var c net.PacketConn
	h.in(path, func() {
		var err error
		if c, err = net.ListenPacket(network, addr); err != nil {
			h.t.Error(err)
		}
	})
	if c == nil {
		h.t.FailNow()
	}
	h.t.Cleanup(func() { c.Close() })
	return func(patience time.Duration) int {
		h.ok(c.SetReadDeadline(time.Now().Add(patience)))
		if _, _, err := c.ReadFrom(make([]byte, 1500)); err != nil {
			return 0
		}
		return 1
	}
}

// send puts a packet on the link of a namespace's eth0, addressed to the host's
// interface. It may be a packet that routing would never send.
func (h *host) send(path, hostLink string, packet []byte) {
	h.t.Helper()
	to, err := netlink.LinkByName(hostLink)
	h.ok(err)
	h.in(path, func() {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			h.t.Error(err)
			return
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			h.t.Error(err)
			return
		}
		defer unix.Close(fd)
		const ipv4 = 0x0008 // ETH_P_IP in network byte order
		sa := &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: eth0.Attrs().Index, Halen: 6}
		copy(sa.Addr[:], to.Attrs().HardwareAddr)
		if err := unix.Sendto(fd, packet, 0, sa); err != nil {
			h.t.Error(err)
		}
	})
}

// datagram is an IPv4 packet with an empty UDP datagram, without the optional
// UDP checksum.
func datagram(src, dst string, port uint16) []byte {
	b := make([]byte, 28)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], net.ParseIP(src).To4())
	copy(b[16:], net.ParseIP(dst).To4())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], 40000)
	binary.BigEndian.PutUint16(b[22:], port)
	binary.BigEndian.PutUint16(b[24:], 8)
	return b
}

// udpClient returns a function that sends one more datagram on the same flow
// and returns the name of the server that answered.
func (h *host) udpClient(path, addr string) func() string {
	var c net.Conn
	h.in(path, func() {
		var err error
		if c, err = net.Dial("udp", addr); err != nil {
			h.t.Error(err)
		}
	})
	if c == nil {
		h.t.FailNow()
	}
	h.t.Cleanup(func() { c.Close() })
	return func() string {
		buf := make([]byte, 1500)
		// The kernel may refuse a datagram while the port leads nowhere, so
		// send again until the deadline.
		for deadline := time.Now().Add(soon); time.Now().Before(deadline); {
			_, _ = c.Write([]byte("x"))
			h.ok(c.SetReadDeadline(time.Now().Add(silence)))
			if n, err := c.Read(buf); err == nil {
				name, _, _ := strings.Cut(string(buf[:n]), " ")
				return name
			}
		}
		return ""
	}
}
