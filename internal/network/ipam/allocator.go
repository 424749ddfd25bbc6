// Package ipam hands out addresses of a subnet and finds subnets that nobody
// on the host uses. It is pure: what is taken is told to it at start by who
// holds the records, and nothing is counted or kept beyond the process.
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
	// ErrOutside: that address belongs to none of the subnets.
	ErrOutside = errors.New("it does not belong to any of this network's subnets")
)

// Subnet describes what an Allocator gives out.
type Subnet struct {
	Prefix netip.Prefix
	// Range limits dynamic addresses to a part of Prefix; zero is all of it.
	Range netip.Prefix
	// Reserved are never given out: the gateway and auxiliary addresses.
	Reserved []netip.Addr
}

// Allocator gives out the addresses of one subnet. Its cursor moves upward and
// wraps, so that an address that was just released comes last: neighbours and
// connection tracking may still remember it. It is not safe for concurrent use.
type Allocator struct {
	subnet netip.Prefix
	rng    netip.Prefix
	last   netip.Addr // of the range
	cursor netip.Addr // given out last
	taken  map[netip.Addr]bool
	fixed  map[netip.Addr]bool
}

// New returns an allocator of s. It fails when the prefix is not valid, the
// range is not part of it or a reserved address lies outside.
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
	a.cursor = a.last // the first one given out is the range's first
	return a, nil
}

// Subnet is the prefix that the addresses belong to.
func (a *Allocator) Subnet() netip.Prefix { return a.subnet }

// Contains reports whether addr belongs to the subnet.
func (a *Allocator) Contains(addr netip.Addr) bool { return a.subnet.Contains(addr) }

// Next gives out the next free address, or ErrExhausted.
func (a *Allocator) Next() (netip.Addr, error) {
	addr := a.cursor
	// Each step meets another address, so more steps than there are addresses
	// that can't be given means that all of the range was seen.
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

// Reserve takes one address, of the range or not. It fails with ErrOutside or
// ErrInUse.
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

// Resume sets the cursor behind addr, the last one that an earlier process
// gave out. An address outside the range is ignored.
func (a *Allocator) Resume(addr netip.Addr) {
	if a.rng.Contains(addr) {
		a.cursor = addr
	}
}

// Release gives an address back. One that is not taken is fine.
func (a *Allocator) Release(addr netip.Addr) { delete(a.taken, addr) }

// Highest is the highest address that is taken; the zero one if none is.
func (a *Allocator) Highest() netip.Addr {
	var h netip.Addr
	for addr := range a.taken {
		if h.Less(addr) {
			h = addr
		}
	}
	return h
}

// Usage counts the addresses of the subnet that are taken or reserved, and
// those of the range that can still be given out. Either stops at 2^64-1.
func (a *Allocator) Usage() (used, free uint64) {
	free = size(a.rng)
	for _, set := range []map[netip.Addr]bool{a.fixed, a.taken} {
		used += uint64(len(set))
		if free == math.MaxUint64 {
			continue
		}
		for addr := range set {
			if a.rng.Contains(addr) {
				free--
			}
		}
	}
	return used, free
}

func size(p netip.Prefix) uint64 {
	bits := p.Addr().BitLen() - p.Bits()
	if bits >= 64 {
		return math.MaxUint64
	}
	return 1 << bits
}

// Last is the highest address of p.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
