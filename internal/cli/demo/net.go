// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// freeSubnet returns the first address, with its prefix length, of a /24 that
// overlaps no subnet of the host's links.
func freeSubnet() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("list the host's addresses: %w", err)
	}
	var taken []netip.Prefix
	for _, a := range addrs {
		// Only IP prefixes can overlap.
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			taken = append(taken, p.Masked())
		}
	}
	for range 1000 {
		// 10.201 to 10.250 is outside of Docker's pools and the usual ranges of
		// clusters.
		ip := netip.AddrFrom4([4]byte{10, byte(201 + rand.IntN(50)), byte(rand.IntN(256)), 1})
		candidate := netip.PrefixFrom(ip, 24)
		if free(candidate.Masked(), taken) {
			return candidate.String(), nil
		}
	}
	return "", errors.New("no free subnet in 10.201.0.0 to 10.250.255.255")
}

func free(candidate netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.Overlaps(candidate) {
			return false
		}
	}
	return true
}

// removeBridge takes down and removes the private bridge with the bridge
// ioctls. It succeeds if there is no such bridge.
func removeBridge(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(0) // no flags, so IFF_UP is cleared
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); errors.Is(err, unix.ENODEV) {
		return nil
	} else if err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	// The ioctl reads only the name, with which an ifreq begins.
	if err := unix.IoctlIfreq(fd, unix.SIOCBRDELBR, req); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// removeRules deletes the nftables tables of the private bridge. Their names
// contain the bridge's.
func removeRules(bridge string) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("list nftables tables: %w", err)
	}
	mine := false
	for _, t := range tables {
		if strings.Contains(t.Name, bridge) {
			conn.DelTable(t)
			mine = true
		}
	}
	if !mine {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("delete nftables tables of %s: %w", bridge, err)
	}
	return nil
}
