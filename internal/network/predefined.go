package network

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/ipam"
)

// Drivers of networks, by Docker's names.
const (
	driverBridge = "bridge"
	driverHost   = "host"
	driverNull   = "null"
)

// definePredefined makes the records of bridge, host and none what the options
// say, and stores those that changed. m.mu is held.
func (m *Manager) definePredefined() error {
	for name, driver := range map[string]string{network.NetworkHost: driverHost, network.NetworkNone: driverNull} {
		if m.networks[name] != nil {
			continue
		}
		r := &record{Schema: recordSchema, ID: randomID(), Name: name, Driver: driver, Created: time.Now().UTC(), EnableIPv4: true}
		if err := save(m.opts.Root, r); err != nil {
			return err
		}
		m.networks[name] = &object{record: r}
	}
	if m.opts.BridgeName == "none" {
		if n := m.networks[network.NetworkBridge]; n != nil {
			return m.removeRecord(n)
		}
		return nil
	}
	old := m.networks[network.NetworkBridge]
	var before *record
	r := &record{Schema: recordSchema, ID: randomID(), Name: network.NetworkBridge, Driver: driverBridge, Created: time.Now().UTC(), EnableIPv4: true}
	if old != nil {
		copied := *old.record
		before, r = old.record, &copied
	}
	if err := m.defineBridge(r, before); err != nil {
		return err
	}
	if before == nil || !reflect.DeepEqual(before, r) {
		if err := save(m.opts.Root, r); err != nil {
			return err
		}
	}
	n := &object{record: r}
	if err := n.makeAllocators(); err != nil {
		return err
	}
	m.networks[network.NetworkBridge] = n
	return nil
}

func (m *Manager) defineBridge(r, before *record) error {
	o := m.opts
	present, exists, err := bridge.Addresses(o.BridgeName)
	if err != nil {
		return err
	}
	var known []subnet // of the same bridge, from before
	br := &bridgeRecord{Name: o.BridgeName, Made: !exists}
	if before != nil && before.Bridge != nil && before.Bridge.Name == o.BridgeName {
		known = before.Subnets
		br.Made, br.MAC = before.Bridge.Made || !exists, before.Bridge.MAC
	}
	v4, err := m.subnet4(known, present, br.Made)
	if err != nil {
		return err
	}
	if br.MAC == "" && br.Made {
		br.MAC = macOf(v4.Bridge).String()
	}
	r.Bridge, r.EnableIPv6, r.Subnets = br, o.IPv6, []subnet{v4}
	if o.IPv6 {
		v6, err := m.subnet6(known, present, br.Made)
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

// subnet4 is, in this order: what bip says; what a bridge has that was there
// before the engine; what was chosen once; the first free one of the pools.
func (m *Manager) subnet4(known []subnet, present []netip.Prefix, made bool) (subnet, error) {
	var at netip.Prefix // the bridge's address
	switch {
	case m.opts.bip.IsValid():
		at = m.opts.bip
	case !made && firstOf(present, false).IsValid():
		at = firstOf(present, false)
	default:
		for _, s := range known {
			if s.Prefix.Addr().Is4() {
				at = netip.PrefixFrom(s.Bridge, s.Prefix.Bits())
			}
		}
	}
	if !at.IsValid() {
		used, err := bridge.Used(m.opts.BridgeName)
		if err != nil {
			return subnet{}, err
		}
		p, err := ipam.FirstFree(m.opts.Pools, false, used)
		if err != nil {
			return subnet{}, fmt.Errorf("default network: %w: name one with \"bip\"", err)
		}
		at = netip.PrefixFrom(ipam.Gateway(p), p.Bits())
	}
	return m.subnetAt(at, m.opts.fixed, m.opts.gateway, "fixed-cidr", "default-gateway")
}

// subnet6 is like subnet4, but where nothing is said it is a random unique
// local one (RFC 4193).
func (m *Manager) subnet6(known []subnet, present []netip.Prefix, made bool) (subnet, error) {
	var at, rng netip.Prefix
	switch {
	case m.opts.bip6.IsValid():
		at, rng = m.opts.bip6, m.opts.fixed6
	case m.opts.fixed6.IsValid():
		p := m.opts.fixed6.Masked()
		at = netip.PrefixFrom(ipam.Gateway(p), p.Bits())
	case !made && firstOf(present, true).IsValid():
		at = firstOf(present, true)
	default:
		for _, s := range known {
			if s.Prefix.Addr().Is6() {
				at = netip.PrefixFrom(s.Bridge, s.Prefix.Bits())
			}
		}
	}
	if !at.IsValid() {
		if p, err := ipam.FirstFree(m.opts.Pools, true, nil); err == nil {
			at = netip.PrefixFrom(ipam.Gateway(p), p.Bits())
		} else {
			p := uniqueLocal()
			at = netip.PrefixFrom(ipam.Gateway(p), p.Bits())
		}
	}
	return m.subnetAt(at, rng, m.opts.gateway6, "fixed-cidr-v6", "default-gateway-v6")
}

// uniqueLocal is a random subnet of RFC 4193.
func uniqueLocal() netip.Prefix {
	b := [16]byte{0xfd}
	rand.Read(b[1:6])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

func (m *Manager) subnetAt(at, rng netip.Prefix, gateway netip.Addr, rangeKey, gatewayKey string) (subnet, error) {
	s := subnet{Prefix: at.Masked(), Bridge: at.Addr(), Gateway: at.Addr()}
	if rng.IsValid() {
		if rng.Bits() < at.Bits() || !s.Prefix.Contains(rng.Addr()) {
			return s, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid %s %s: it is not part of the bridge's subnet %s", rangeKey, rng, s.Prefix))
		}
		s.Range = rng.Masked()
	}
	if gateway.IsValid() {
		if !s.Prefix.Contains(gateway) {
			return s, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid %s %s: it is not part of the bridge's subnet %s", gatewayKey, gateway, s.Prefix))
		}
		s.Gateway = gateway
	}
	return s, nil
}

func firstOf(ps []netip.Prefix, v6 bool) netip.Prefix {
	i := slices.IndexFunc(ps, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
	if i < 0 {
		return netip.Prefix{}
	}
	return ps[i]
}
