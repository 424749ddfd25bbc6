// SPDX-License-Identifier: Apache-2.0

package network

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"

	"github.com/moby/moby/api/types/network"
)

// macOf returns the hardware address that is derived from an IP address. It is
// locally administered. It is the same each time that the address is allocated,
// so neighbour tables stay right.
func macOf(addr netip.Addr) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x42}
	if addr.Is4() {
		b := addr.As4()
		return append(mac, b[:]...)
	}
	b := addr.As16()
	return append(mac, b[12:]...)
}

// randomMAC returns a random, locally administered hardware address.
func randomMAC() net.HardwareAddr {
	var b [4]byte
	rand.Read(b[:])
	return append(net.HardwareAddr{0x02, 0x43}, b[:]...)
}

func parseMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil, fmt.Errorf("hardware address %q: %w", s, err)
	}
	return mac, nil
}

func hardwareAddr(s string) network.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil
	}
	return network.HardwareAddr(mac)
}
