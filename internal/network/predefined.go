// SPDX-License-Identifier: Apache-2.0

package network

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/network/bridge"
	"holdfast/internal/network/ipam"
)

// Drivers of networks, by Docker's names.
const (
	driverBridge = "bridge"
	driverHost   = "host"
	driverNull   = "null"
)

// BridgeAddresses returns the addresses of a bridge that the user has made, without
// link-local ones. exists is false if there is no such interface.
func BridgeAddresses(name string) (addrs []netip.Prefix, exists bool, err error) {
	return bridge.Addresses(name)
}

// definePredefined updates the records of bridge, host and none from the options,
// and stores those that changed.
func (v *inventory) definePredefined(o ownership) error {
	for name, driver := range map[string]string{network.NetworkHost: driverHost, network.NetworkNone: driverNull} {
		if v.networks[name] != nil {
			continue
		}
		r := &record{Schema: recordSchema, ID: randomID(), Name: name, Driver: driver, Created: time.Now().UTC(), EnableIPv4: true}
		if err := save(v.opts.Root, r); err != nil {
			return err
		}
		v.networks[name] = &object{record: r}
	}
	if v.opts.BridgeName == "none" {
		if n := v.networks[network.NetworkBridge]; n != nil {
			return v.removeRecord(n)
		}
		return nil
	}
	old := v.networks[network.NetworkBridge]
	var before *record
	r := &record{Schema: recordSchema, ID: randomID(), Name: network.NetworkBridge, Driver: driverBridge, Created: time.Now().UTC(), EnableIPv4: true}
	if old != nil {
		copied := *old.record
		before, r = old.record, &copied
	}
	if err := defineBridge(v.opts, o, r, before); err != nil {
		return err
	}
	if before == nil || !reflect.DeepEqual(before, r) {
		if err := save(v.opts.Root, r); err != nil {
			return err
		}
	}
	n := &object{record: r}
	if err := n.makeAllocators(); err != nil {
		return err
	}
	v.networks[network.NetworkBridge] = n
	return nil
}

// defaultBridge chooses the subnets of the default network.
type defaultBridge struct {
	opts *parsed
	ownership
	known   []subnet       // subnets that the record has for the same bridge
	present []netip.Prefix // the bridge's addresses
	made    bool           // the engine made the bridge
}

// defineBridge sets the fields of the default network's record, which was before.
func defineBridge(o *parsed, owner ownership, r, before *record) error {
	present, exists, err := bridge.Addresses(o.BridgeName)
	if err != nil {
		return err
	}
	d := defaultBridge{opts: o, ownership: owner, present: present}
	br := &bridgeRecord{Name: o.BridgeName, Made: !exists}
	if before != nil && before.Bridge != nil && before.Bridge.Name == o.BridgeName {
		d.known = before.Subnets
		br.Made, br.MAC = before.Bridge.Made || !exists, before.Bridge.MAC
	}
	br.Made = (br.Made || owner.abandoned) && !owner.guest
	d.made = br.Made
	v4, err := d.subnet4()
	if err != nil {
		return err
	}
	if br.MAC == "" && br.Made {
		br.MAC = macOf(v4.Bridge).String()
	}
	r.Bridge, r.EnableIPv6, r.Subnets = br, o.IPv6, []subnet{v4}
	if o.IPv6 {
		v6, err := d.subnet6()
		if err != nil {
			return err
		}
		r.Subnets = append(r.Subnets, v6)
	}
	bind := "0.0.0.0"
	if o.DefaultBindIP.IsValid() {
		bind = o.DefaultBindIP.String()
	}
	r.Options = map[string]string{
		"com.docker.network.bridge.default_bridge":       "true",
		"com.docker.network.bridge.enable_icc":           strconv.FormatBool(o.ICC),
		"com.docker.network.bridge.enable_ip_masquerade": strconv.FormatBool(o.IPMasq),
		"com.docker.network.bridge.host_binding_ipv4":    bind,
		"com.docker.network.bridge.name":                 o.BridgeName,
		"com.docker.network.driver.mtu":                  strconv.Itoa(o.MTU),
	}
	return nil
}

// subnet4 chooses the IPv4 subnet from the first of these that is given: bip; the
// addresses of a bridge that the engine did not make; the stored subnet;
// fixed-cidr, as in Docker; the first free subnet of the pools.
func (d *defaultBridge) subnet4() (subnet, error) {
	var at netip.Prefix // the bridge's address
	switch {
	case d.opts.bip.IsValid():
		at = d.opts.bip
	case !d.made && !d.guest && firstOf(d.present, false).IsValid():
		at = firstOf(d.present, false)
	default:
		for _, s := range d.known {
			if s.Prefix.Addr().Is4() && (!d.opts.fixed.IsValid() || contains(s.Prefix, d.opts.fixed)) {
				at = netip.PrefixFrom(s.Bridge, s.Prefix.Bits())
			}
		}
	}
	if !at.IsValid() && d.opts.fixed.IsValid() {
		p := d.opts.fixed.Masked()
		at = netip.PrefixFrom(ipam.Gateway(p, netip.Prefix{}), p.Bits())
	}
	if !at.IsValid() {
		except := d.opts.BridgeName
		if d.guest {
			except = "" // also avoid this bridge's subnets: another daemon allocates from them
		}
		used, err := bridge.Used(except)
		if err != nil {
			return subnet{}, err
		}
		p, err := ipam.FirstFree(d.opts.Pools, false, used)
		if err != nil {
			return subnet{}, fmt.Errorf("default network: %w: name one with \"bip\"", err)
		}
		at = netip.PrefixFrom(ipam.Gateway(p, netip.Prefix{}), p.Bits())
	}
	return subnetAt(at, d.opts.fixed, d.opts.gateway, "fixed-cidr", "default-gateway")
}

// subnet6 is like subnet4, but its last resort is a random unique local subnet
// (RFC 4193).
func (d *defaultBridge) subnet6() (subnet, error) {
	var at, rng netip.Prefix
	switch {
	case d.opts.bip6.IsValid():
		at, rng = d.opts.bip6, d.opts.fixed6
	case d.opts.fixed6.IsValid():
		p := d.opts.fixed6.Masked()
		at = netip.PrefixFrom(ipam.Gateway(p, netip.Prefix{}), p.Bits())
	case !d.made && !d.guest && firstOf(d.present, true).IsValid():
		at = firstOf(d.present, true)
	default:
		for _, s := range d.known {
			if s.Prefix.Addr().Is6() {
				at = netip.PrefixFrom(s.Bridge, s.Prefix.Bits())
			}
		}
	}
	if !at.IsValid() {
		if p, err := ipam.FirstFree(d.opts.Pools, true, nil); err == nil {
			at = netip.PrefixFrom(ipam.Gateway(p, netip.Prefix{}), p.Bits())
		} else {
			p := uniqueLocal()
			at = netip.PrefixFrom(ipam.Gateway(p, netip.Prefix{}), p.Bits())
		}
	}
	return subnetAt(at, rng, d.opts.gateway6, "fixed-cidr-v6", "default-gateway-v6")
}

// uniqueLocal returns a random unique local subnet (RFC 4193).
func uniqueLocal() netip.Prefix {
	b := [16]byte{0xfd}
	rand.Read(b[1:6])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

func subnetAt(at, rng netip.Prefix, gateway netip.Addr, rangeKey, gatewayKey string) (subnet, error) {
	s := subnet{Prefix: at.Masked(), Bridge: at.Addr(), Gateway: at.Addr()}
	if rng.IsValid() {
		if !contains(s.Prefix, rng) {
			return s, errs.Invalid("invalid %s %s: it is not part of the bridge's subnet %s", rangeKey, rng, s.Prefix)
		}
		s.Range = rng.Masked()
	}
	if gateway.IsValid() {
		if !s.Prefix.Contains(gateway) {
			return s, errs.Invalid("invalid %s %s: it is not part of the bridge's subnet %s", gatewayKey, gateway, s.Prefix)
		}
		s.Gateway = gateway
	}
	return s, nil
}

// contains reports whether a prefix lies within a subnet.
func contains(subnet, p netip.Prefix) bool {
	return p.Bits() >= subnet.Bits() && subnet.Contains(p.Addr())
}

func firstOf(ps []netip.Prefix, v6 bool) netip.Prefix {
	i := slices.IndexFunc(ps, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
	if i < 0 {
		return netip.Prefix{}
	}
	return ps[i]
}
