// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
)

// Pool is a range of addresses that is cut into subnets of Size bits, as in
// daemon.json's default-address-pools.
type Pool struct {
	Base netip.Prefix
	Size int
}

// DefaultPools are Docker's pools, for networks without a requested subnet.
var DefaultPools = []Pool{
	{netip.MustParsePrefix("172.17.0.0/16"), 16},
	{netip.MustParsePrefix("172.18.0.0/16"), 16},
	{netip.MustParsePrefix("172.19.0.0/16"), 16},
	{netip.MustParsePrefix("172.20.0.0/14"), 16},
	{netip.MustParsePrefix("172.24.0.0/14"), 16},
	{netip.MustParsePrefix("172.28.0.0/14"), 16},
	{netip.MustParsePrefix("192.168.0.0/16"), 20},
}

// Check reports what is wrong with a pool.
func (p Pool) Check() error {
	if !p.Base.IsValid() {
		return fmt.Errorf("invalid base pool %s", p.Base)
	}
	if p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
		return fmt.Errorf("the pool size (%d) must be between the prefix length of %s and %d", p.Size, p.Base, p.Base.Addr().BitLen())
	}
	return nil
}

// FirstFree returns the first subnet of the pools, of IPv4 or of IPv6, that
// overlaps none of used. If there is none the error has Docker's message.
func FirstFree(pools []Pool, v6 bool, used []netip.Prefix) (netip.Prefix, error) {
	for _, p := range pools {
		if p.Check() != nil || p.Base.Addr().Is6() != v6 {
			continue
		}
		end := Last(p.Base)
		for addr := p.Base.Masked().Addr(); addr.IsValid() && p.Base.Contains(addr); {
			subnet := netip.PrefixFrom(addr, p.Size)
			taken := overlapping(subnet, used)
			if !taken.IsValid() {
				return subnet, nil
			}
			// Continue after the larger of the two, so that a used /8 is skipped in one
			// step.
			last := Last(subnet)
			if l := Last(taken); last.Less(l) {
				last = l
			}
			if last == end {
				break
			}
			addr = last.Next()
		}
	}
	return netip.Prefix{}, fmt.Errorf("all predefined address pools have been fully subnetted: %w", ErrExhausted)
}

// Gateway returns the default gateway of a network: the first address of the
// subnet, or of the range if it is valid, that is not the network's own address.
// An IPv4 subnet of two addresses has no network address (RFC 3021), so the
// gateway is its very first one. In IPv6 the first address is the anycast address
// of all routers.
func Gateway(subnet, within netip.Prefix) netip.Addr {
	first := subnet.Masked().Addr()
	if within.IsValid() && within.Masked().Addr() != first {
		return within.Masked().Addr()
	}
	if first.Is4() && first.BitLen()-subnet.Bits() <= 1 {
		return first
	}
	return first.Next()
}

func overlapping(p netip.Prefix, used []netip.Prefix) netip.Prefix {
	for _, u := range used {
		if u.Overlaps(p) {
			return u
		}
	}
	return netip.Prefix{}
}
