// SPDX-License-Identifier: Apache-2.0

// Package ipam allocates addresses of a subnet and finds subnets that are unused
// on the host. It is pure: at start the caller reserves what its records say is
// allocated. The package stores nothing.
package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
)

var (
	// ErrExhausted: every address of the range is taken.
	ErrExhausted = errors.New("no available addresses")
	// ErrInUse: that address is taken.
	ErrInUse = errors.New("Address already in use") // Docker's words
	// ErrOutside: that address is in none of the subnets.
	ErrOutside = errors.New("it does not belong to any of this network's subnets")
)

// Subnet describes what an Allocator allocates from.
type Subnet struct {
	Prefix netip.Prefix
	// Range limits dynamic addresses to a part of Prefix. The zero value means all
	// of it.
	Range netip.Prefix
	// Reserved are never allocated: the gateway and auxiliary addresses.
	Reserved []netip.Addr
}

// Allocator allocates the addresses of one subnet. Its cursor moves upward and
// wraps, so that an address that was just released comes last: neighbours and
// connection tracking may still remember it. It is not safe for concurrent use.
type Allocator struct {
	subnet netip.Prefix
	rng    netip.Prefix
	last   netip.Addr // of the range
	cursor netip.Addr // allocated last
	taken  map[netip.Addr]bool
	fixed  map[netip.Addr]bool
}

// New returns an allocator of s. It fails if the prefix is not valid, the range
// is not part of it or a reserved address is outside of it.
func New(s Subnet) (*Allocator, error) {
	if !s.Prefix.IsValid() {
		return nil, fmt.Errorf("invalid subnet %s", s.Prefix)
	}
	subnet := s.Prefix.Masked()
	rng := subnet
	if s.Range.IsValid() {
		rng = s.Range.Masked()
		if rng.Bits() < subnet.Bits() || !subnet.Contains(rng.Addr()) {
			return nil, fmt.Errorf("range %s is not part of subnet %s", rng, subnet)
		}
	}
	a := &Allocator{
		subnet: subnet,
		rng:    rng,
		last:   Last(rng),
		taken:  map[netip.Addr]bool{},
		fixed:  map[netip.Addr]bool{},
	}
	// Subnets of one or two addresses have neither a network nor a broadcast
	// address (RFC 3021, RFC 6164).
	if subnet.Addr().BitLen()-subnet.Bits() > 1 {
		a.fixed[subnet.Addr()] = true
		if subnet.Addr().Is4() {
			a.fixed[Last(subnet)] = true
		}
	}
	for _, r := range s.Reserved {
		if !r.IsValid() {
			continue
		}
		if !subnet.Contains(r) {
			return nil, fmt.Errorf("invalid address %s: %w", r, ErrOutside)
		}
		a.fixed[r] = true
	}
	a.cursor = a.last // the first address is then the range's first
	return a, nil
}

// Subnet is the prefix that the addresses belong to.
func (a *Allocator) Subnet() netip.Prefix { return a.subnet }

// Contains reports whether addr belongs to the subnet.
func (a *Allocator) Contains(addr netip.Addr) bool { return a.subnet.Contains(addr) }

// Next allocates the next free address, or returns ErrExhausted.
func (a *Allocator) Next() (netip.Addr, error) {
	addr := a.cursor
	// Each step tries another address. After more steps than there are taken and
	// reserved addresses, the whole range was tried.
	for range len(a.taken) + len(a.fixed) + 1 {
		if addr == a.last {
			addr = a.rng.Addr()
		} else {
			addr = addr.Next()
		}
		if !a.taken[addr] && !a.fixed[addr] {
			a.taken[addr] = true
			a.cursor = addr
			return addr, nil
		}
	}
	return netip.Addr{}, ErrExhausted
}

// Reserve allocates the given address, in the range or not. It fails with
// ErrOutside or ErrInUse.
func (a *Allocator) Reserve(addr netip.Addr) error {
	switch {
	case !a.subnet.Contains(addr):
		return fmt.Errorf("invalid address %s: %w", addr, ErrOutside)
	case a.taken[addr] || a.fixed[addr]:
		return ErrInUse
	}
	a.taken[addr] = true
	return nil
}

// Resume sets the cursor to addr, the last address that an earlier process
// allocated. An address outside the range is ignored.
func (a *Allocator) Resume(addr netip.Addr) {
	if a.rng.Contains(addr) {
		a.cursor = addr
	}
}

// Release frees an address. An address that is not allocated is ignored.
func (a *Allocator) Release(addr netip.Addr) { delete(a.taken, addr) }

// Highest returns the highest allocated address, or the zero Addr if there is
// none.
func (a *Allocator) Highest() netip.Addr {
	var h netip.Addr
	for addr := range a.taken {
		if h.Less(addr) {
			h = addr
		}
	}
	return h
}

// Usage counts the addresses of the subnet that are allocated or reserved, and
// those of the range that are free. Both saturate at 2^64-1.
func (a *Allocator) Usage() (used, free uint64) {
	var within uint64
	for _, set := range []map[netip.Addr]bool{a.fixed, a.taken} {
		used += uint64(len(set))
		for addr := range set {
			if a.rng.Contains(addr) {
				within++
			}
		}
	}
	switch bits := a.rng.Addr().BitLen() - a.rng.Bits(); {
	case bits > 64, bits == 64 && within == 0:
		return used, math.MaxUint64
	case bits == 64:
		return used, -within // 2⁶⁴ minus within
	default:
		return used, 1<<bits - within
	}
}

// Last returns the highest address of p.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
