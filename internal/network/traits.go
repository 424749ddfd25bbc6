// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/errs"
	"holdfast/internal/network/nft"
)

// Options of networks, under Docker's names.
const (
	optName        = "com.docker.network.bridge.name"
	optICC         = "com.docker.network.bridge.enable_icc"
	optMasquerade  = "com.docker.network.bridge.enable_ip_masquerade"
	optBindIPv4    = "com.docker.network.bridge.host_binding_ipv4"
	optMTU         = "com.docker.network.driver.mtu"
	optEnableIPv4  = "com.docker.network.enable_ipv4"
	optEnableIPv6  = "com.docker.network.enable_ipv6"
	optIfacePrefix = "com.docker.network.container_iface_prefix"
	optIfName      = "com.docker.network.endpoint.ifname"
	optSysctls     = "com.docker.network.endpoint.sysctls"
	optGateway4    = "com.docker.network.bridge.gateway_mode_ipv4"
	optGateway6    = "com.docker.network.bridge.gateway_mode_ipv6"
	optInhibit4    = "com.docker.network.bridge.inhibit_ipv4"
	optTrusted     = "com.docker.network.bridge.trusted_host_interfaces"
	optSource4     = "com.docker.network.host_ipv4"
	optSource6     = "com.docker.network.host_ipv6"

	optAnnouncements = "com.docker.network.advertise_addr_nmsgs"
	optAnnounceEvery = "com.docker.network.advertise_addr_ms"

	optParent      = "parent"
	optMacvlanMode = "macvlan_mode"
	optIPvlanMode  = "ipvlan_mode"
)

// traits are the parsed options of a network.
type traits struct {
	mtu      int // bytes
	icc      bool
	masq     bool
	bindIP   netip.Addr
	prefix   string // of the interface names in containers
	announce Announcements
	internal bool
	// By family:
	isolated [2]bool       // the bridge has no address, so the host is out of reach
	access   [2]nft.Access // access from other hosts
	source   [2]netip.Addr // source address of packets to other hosts; zero means the route's own
	// inhibit4: the bridge gets no IPv4 address; another host is the gateway.
	inhibit4 bool
	trusted  []string // interfaces of the host that may reach containers' own addresses
}

// bare reports whether the bridge has no address of the family.
func (t traits) bare(family int) bool { return t.isolated[family] || family == 0 && t.inhibit4 }

// direct reports whether published ports of the family can be reached at the
// containers' own addresses.
func (t traits) direct(family int) bool {
	return t.access[family] == nft.Routed || t.access[family] == nft.NAT && len(t.trusted) > 0
}

// traits returns the traits of a network: for the default one from the daemon's
// options, for others from their own.
func (p *parsed) traits(r *record) traits {
	t := traits{mtu: p.MTU, icc: p.ICC, masq: p.IPMasq, bindIP: p.DefaultBindIP, prefix: "eth", announce: defaultAnnouncements, internal: r.Internal}
	if predefined(r.Name) {
		return t
	}
	own, err := parseTraits(r.Options)
	if err != nil {
		// The options were validated when the network was created.
		p.Log.Warn("a network's options can't be read, the defaults hold", "network", r.Name, "error", err)
		return t
	}
	if own.mtu == 0 {
		own.mtu = cmp.Or(r.MTU, t.mtu)
	}
	if !own.bindIP.IsValid() {
		own.bindIP = t.bindIP
	}
	own.internal = r.Internal
	return own
}

// newTraits is parseTraits for a network that is created.
func newTraits(o map[string]string) (traits, error) {
	if _, err := parseAnnouncements(o); err != nil {
		return traits{}, err
	}
	return parseTraits(o)
}

// parseTraits parses a user's options. It ignores keys that others read and keys
// that are unknown, as Docker does.
func parseTraits(o map[string]string) (traits, error) {
	announce, _ := parseAnnouncements(o) // newTraits checks them: earlier releases did not read them
	t := traits{icc: true, masq: true, prefix: "eth", announce: announce}
	bad := func(key, want string) (traits, error) {
		return t, errs.Invalid("invalid option %s=%s: want %s", key, o[key], want)
	}
	for key, to := range map[string]*bool{optICC: &t.icc, optMasquerade: &t.masq, optInhibit4: &t.inhibit4} {
		if v, ok := o[key]; ok {
			b, err := strconv.ParseBool(v)
			if err != nil {
				return bad(key, "true or false")
			}
			*to = b
		}
	}
	for i, key := range []string{optGateway4, optGateway6} {
		switch o[key] {
		case "", "nat":
		case "isolated":
			t.isolated[i] = true
		case "routed":
			t.access[i] = nft.Routed
		case "nat-unprotected":
			t.access[i] = nft.Open
		default:
			return bad(key, "nat, nat-unprotected, routed or isolated")
		}
	}
	for i, key := range []string{optSource4, optSource6} {
		if v := o[key]; v != "" {
			a, err := netip.ParseAddr(v)
			if err != nil || a.Is6() != (i == 1) || a.IsUnspecified() || a.Zone() != "" {
				return bad(key, "an IPv"+[]string{"4", "6"}[i]+" address of the host")
			}
			t.source[i] = a
		}
	}
	if v := o[optTrusted]; v != "" {
		t.trusted = strings.Split(v, ":")
		for _, name := range t.trusted {
			if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\n\"") {
				return bad(optTrusted, "names of interfaces with : between them")
			}
		}
		slices.Sort(t.trusted)
		t.trusted = slices.Compact(t.trusted)
	}
	if v := o[optMTU]; v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n != 0 && (n < 68 || n > 65535) {
			return bad(optMTU, "68 to 65535")
		}
		t.mtu = n
	}
	if v := o[optBindIPv4]; v != "" {
		a, err := netip.ParseAddr(v)
		if err != nil || !a.Is4() {
			return bad(optBindIPv4, "an IPv4 address")
		}
		if !a.IsUnspecified() {
			t.bindIP = a
		}
	}
	if v := o[optIfacePrefix]; v != "" {
		if len(v) > 12 {
			return bad(optIfacePrefix, "at most 12 characters")
		}
		t.prefix = v
	}
	return t, nil
}
