package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/containerd/errdefs"
)

// Options of networks, under Docker's names.
const (
	optName        = "com.docker.network.bridge.name"
	optICC         = "com.docker.network.bridge.enable_icc"
	optMasquerade  = "com.docker.network.bridge.enable_ip_masquerade"
	optBindIPv4    = "com.docker.network.bridge.host_binding_ipv4"
	optMTU         = "com.docker.network.driver.mtu"
	optIfacePrefix = "com.docker.network.container_iface_prefix"
	optIfName      = "com.docker.network.endpoint.ifname"
	optSysctls     = "com.docker.network.endpoint.sysctls"
	optGateway4    = "com.docker.network.bridge.gateway_mode_ipv4"
	optGateway6    = "com.docker.network.bridge.gateway_mode_ipv6"
	optParent      = "parent"
	optMacvlanMode = "macvlan_mode"
	optIPvlanMode  = "ipvlan_mode"
)

// traits are what a network's options mean.
type traits struct {
	mtu      int // bytes
	icc      bool
	masq     bool
	bindIP   netip.Addr
	prefix   string // of the interface names in containers
	internal bool
	isolated [2]bool // by family: the bridge has no address, so the host is out of reach
}

// traits of a network: the daemon's options for the default one, its own for
// the others.
func (m *Manager) traits(r *record) traits {
	t := traits{mtu: m.opts.MTU, icc: m.opts.ICC, masq: m.opts.IPMasq, bindIP: m.opts.DefaultBindIP, prefix: "eth", internal: r.Internal}
	if predefined(r.Name) {
		return t
	}
	own, err := parseTraits(r.Options)
	if err != nil {
		// The record was judged when it was made.
		m.opts.Log.Warn("a network's options can't be read, the defaults hold", "network", r.Name, "error", err)
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

// parseTraits reads a user's options. Keys of other meaning are left to who
// reads them; an unknown key is nobody's, as in Docker.
func parseTraits(o map[string]string) (traits, error) {
	t := traits{icc: true, masq: true, prefix: "eth"}
	bad := func(key, want string) (traits, error) {
		return t, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid option %s=%s: want %s", key, o[key], want))
	}
	for key, to := range map[string]*bool{optICC: &t.icc, optMasquerade: &t.masq} {
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
		case "routed", "nat-unprotected":
			return t, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("%s=%s is not available in this release: the modes are nat and isolated", key, o[key]))
		default:
			return bad(key, "nat or isolated")
		}
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
