// SPDX-License-Identifier: Apache-2.0

// Package dump lists network state of the kernel without gaps. The kernel sends a
// long list in parts. If the state changes between two parts, entries can be
// missing; the kernel marks such a list as interrupted.
package dump

import (
	"errors"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// ErrInterrupted says that the kernel's state changed during a listing.
var ErrInterrupted = netlink.ErrDumpInterrupted

// Bounds of the retries of an interrupted listing. Most listings take a fraction of
// a millisecond, so they are only reached on a host whose state changes all the
// time.
const (
	patience = 5 * time.Second
	tries    = 10 // at least, however long each takes
)

// Whole repeats a listing until the kernel's state did not change during it. The
// error wraps ErrInterrupted if it always did.
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	err = Repeat(func() error {
		all, err = list()
		return err
	})
	return all, err
}

// Repeat is Whole for an action on all entries of a listing.
func Repeat(do func() error) error { return repeat(patience, do) }

func repeat(patience time.Duration, do func() error) (err error) {
	start := time.Now()
	for n := 1; ; n++ {
		if err = do(); !errors.Is(err, ErrInterrupted) || n >= tries && time.Since(start) > patience {
			return err
		}
	}
}

// Interfaces returns the interfaces of the current network namespace.
func Interfaces() ([]netlink.Link, error) { return Whole(netlink.LinkList) }

// Addrs returns the addresses of an interface of the current network namespace, or
// of all if dev is nil. family is such as netlink.FAMILY_ALL.
func Addrs(dev netlink.Link, family int) ([]netlink.Addr, error) {
	return Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(dev, family) })
}

// Routes returns the routes of the main table that agree with the filter in the
// fields of the mask, such as netlink.RT_FILTER_PROTOCOL.
func Routes(family int, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return Whole(func() ([]netlink.Route, error) { return netlink.RouteListFiltered(family, filter, mask) })
}

// Prefixes returns the addresses of all interfaces of the current network
// namespace, each with the length of its subnet's prefix.
func Prefixes() ([]netip.Prefix, error) {
	all, err := Addrs(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	out := make([]netip.Prefix, 0, len(all))
	for _, a := range all {
		addr, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if p := netip.PrefixFrom(addr.Unmap(), ones); ok && p.IsValid() {
			out = append(out, p)
		}
	}
	return out, nil
}
