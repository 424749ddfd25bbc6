// SPDX-License-Identifier: Apache-2.0

package network

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/network/bridge"
	"holdfast/internal/network/ipam"
	"holdfast/internal/network/nft"
)

// assignSubnets gives a record the requested subnets, and a subnet of the pools
// for each enabled family without one.
func (v *inventory) assignSubnets(rec *record, asked *network.IPAM) error {
	t, err := parseTraits(rec.Options)
	if err != nil {
		return err
	}
	used := v.subnetsInUse()
	if asked != nil {
		for _, c := range asked.Config {
			if err := rec.addSubnet(c, used); err != nil {
				return err
			}
		}
	}
	if err := v.addFreeSubnets(rec, used); err != nil {
		return err
	}
	for i := range rec.Subnets {
		s := &rec.Subnets[i]
		family := nft.FamilyOf(s.Prefix.Addr())
		if !s.Gateway.IsValid() && !(rec.Driver == driverBridge && t.isolated[family]) {
			s.Gateway = ipam.Gateway(s.Prefix, s.Range)
		}
		if rec.Driver == driverBridge && !t.bare(family) {
			s.Bridge = s.Gateway
		}
		if err := s.checkReserved(); err != nil {
			return err
		}
	}
	return nil
}

// addSubnet adds a requested subnet.
func (rec *record) addSubnet(c network.IPAMConfig, used []netip.Prefix) error {
	if !c.Subnet.IsValid() {
		if c.IPRange.IsValid() || c.Gateway.IsValid() || len(c.AuxAddress) > 0 {
			return errs.Invalid("invalid IPAM configuration: a range, gateway or auxiliary address needs its subnet")
		}
		return nil
	}
	if c.Subnet.Addr().Is6() && !rec.EnableIPv6 || c.Subnet.Addr().Is4() && !rec.EnableIPv4 {
		return nil // as in Docker: compose files name subnets of both families and switch one off
	}
	s, err := parseSubnet(c)
	if err != nil {
		return err
	}
	for _, u := range used {
		if u.Overlaps(s.Prefix) {
			return errs.Forbidden("invalid pool request: Pool overlaps with other one on this address space")
		}
	}
	for _, other := range rec.Subnets {
		if other.Prefix.Overlaps(s.Prefix) {
			return errs.Invalid("invalid subnet %s: it overlaps with %s of the same network", s.Prefix, other.Prefix)
		}
	}
	rec.Subnets = append(rec.Subnets, s)
	return nil
}

// addFreeSubnets adds a free subnet of the pools for each enabled family without a
// subnet.
func (v *inventory) addFreeSubnets(rec *record, used []netip.Prefix) error {
	routes, err := bridge.Used("")
	if err != nil {
		return err
	}
	used = append(routes, used...)
	if rec.EnableIPv4 && !rec.hasSubnet(false) {
		p, err := ipam.FirstFree(v.opts.Pools, false, used)
		if err != nil {
			return errdefs.ErrResourceExhausted.WithMessage(err.Error() + ": name a subnet, or remove networks that are not used")
		}
		rec.Subnets = append(rec.Subnets, subnet{Prefix: p})
	}
	if rec.EnableIPv6 && !rec.hasSubnet(true) {
		p, err := ipam.FirstFree(v.opts.Pools, true, used)
		if err != nil {
			p = uniqueLocal()
		}
		rec.Subnets = append(rec.Subnets, subnet{Prefix: p})
	}
	return nil
}

// hasSubnet reports whether a record has a subnet of the family.
func (rec *record) hasSubnet(v6 bool) bool {
	return slices.ContainsFunc(rec.Subnets, func(s subnet) bool { return s.Prefix.Addr().Is6() == v6 })
}

// checkReserved refuses a gateway or auxiliary address that is used twice, or
// that is the network's own address.
func (s subnet) checkReserved() error {
	taken := map[netip.Addr]bool{}
	if s.Prefix.Addr().BitLen()-s.Prefix.Bits() > 1 {
		taken[s.Prefix.Addr()] = true
		if s.Prefix.Addr().Is4() {
			taken[ipam.Last(s.Prefix)] = true
		}
	}
	if s.Gateway.IsValid() && taken[s.Gateway] {
		return errs.Invalid("failed to allocate gateway (%s): %v", s.Gateway, ipam.ErrInUse)
	}
	taken[s.Gateway] = true
	for _, name := range slices.Sorted(maps.Keys(s.Aux)) {
		if a := s.Aux[name]; taken[a] {
			return errs.Invalid("failed to allocate secondary ip address (%s:%s): %v", name, a, ipam.ErrInUse)
		}
		taken[s.Aux[name]] = true
	}
	return nil
}

func parseSubnet(c network.IPAMConfig) (subnet, error) {
	s := subnet{Prefix: c.Subnet.Masked(), Aux: c.AuxAddress}
	if c.Subnet.Bits() > c.Subnet.Addr().BitLen()-1 {
		return s, errs.Invalid("invalid subnet %s: there is no room for a container in it", c.Subnet)
	}
	if c.Subnet != s.Prefix {
		return s, errs.Invalid("invalid subnet %s: it should be %s", c.Subnet, s.Prefix)
	}
	if a := s.Prefix.Addr(); a.IsLoopback() || a.IsMulticast() {
		return s, errs.Invalid("invalid subnet %s: loopback and multicast addresses can't be given to containers", s.Prefix)
	}
	if c.IPRange.IsValid() {
		if c.IPRange.Bits() < s.Prefix.Bits() || !s.Prefix.Contains(c.IPRange.Addr()) {
			return s, errs.Invalid("invalid ip-range %s: it is not part of the subnet %s", c.IPRange, s.Prefix)
		}
		s.Range = c.IPRange.Masked()
	}
	if c.Gateway.IsValid() {
		if !s.Prefix.Contains(c.Gateway) {
			return s, errs.Invalid("invalid gateway %s: it is not part of the subnet %s", c.Gateway, s.Prefix)
		}
		s.Gateway = c.Gateway
	}
	for name, a := range c.AuxAddress {
		if !s.Prefix.Contains(a) {
			return s, errs.Invalid("invalid auxiliary address %s (%s): it is not part of the subnet %s", name, a, s.Prefix)
		}
	}
	return s, nil
}

// subnetsInUse returns the subnets of all networks and containers.
func (v *inventory) subnetsInUse() []netip.Prefix {
	var used []netip.Prefix
	for _, n := range v.networks {
		if n.ConfigOnly {
			continue
		}
		for _, s := range n.Subnets {
			used = append(used, s.Prefix)
		}
	}
	// Containers keep their addresses when a network's configuration changes.
	for _, s := range v.sandboxes {
		for _, e := range s.Endpoints {
			for _, a := range []Addressing{e.IPv4, e.IPv6} {
				if a.Address.IsValid() {
					used = append(used, a.Address.Masked())
				}
			}
		}
	}
	return used
}
