// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
)

// ValidateEndpoint checks the settings of one network that a container is created
// with, so that no container is created that can't be started. The network itself
// may be created later. Errors: ErrInvalidArgument.
func (reg *registry) ValidateEndpoint(ref string, es *network.EndpointSettings) error {
	ref = canonical(ref)
	if err := validateRequested(ref, es); err != nil {
		return err
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n, err := reg.inv.lookup(ref)
	if err != nil {
		return nil
	}
	if err := validateRequested(n.Name, es); err != nil {
		return err
	}
	return n.validate(es)
}

// ValidateCombination checks that a container of a network mode can be on all the
// networks that it asks for: the host's network, none and another container's
// namespace can't be combined with other networks. Docker reports some of these
// conflicts when the container is started, and otherwise silently drops a
// network. A missing network may be created later. Errors: ErrInvalidArgument.
func (reg *registry) ValidateCombination(mode string, endpoints map[string]*network.EndpointSettings) error {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	nameOf := func(name string) string {
		if n, err := reg.inv.lookup(canonical(name)); err == nil {
			return n.Name
		}
		return name
	}
	alone := func(name string) bool {
		return name == network.NetworkHost || name == network.NetworkNone || strings.HasPrefix(name, "container:")
	}
	mode = nameOf(mode)
	names := map[string]bool{}
	for name := range endpoints {
		names[nameOf(name)] = true
	}
	for _, name := range append(slices.Sorted(maps.Keys(names)), mode) {
		switch {
		case !alone(name):
		case len(names) > 1, alone(mode) && len(names) == 1 && !names[mode]:
			return combinationError(name)
		case name != mode && (name != network.NetworkNone || mode != network.NetworkBridge):
			return errs.Invalid("container cannot be connected to the network %s: name it as the network mode (--network %s)", name, name)
		}
	}
	return nil
}

// combinationError is the error for a network that can't be combined with others.
func combinationError(name string) error {
	return errs.Invalid("conflicting options: the network %s can't be combined with others: container cannot be connected to multiple networks with one of the networks in %s mode", name, name)
}

// validateRequested checks the settings that a request gives for the network name.
// Stored settings are not checked again: an earlier release may have accepted
// them.
func validateRequested(name string, es *network.EndpointSettings) error {
	if es == nil {
		return nil
	}
	if predefined(name) {
		if len(es.Aliases) > 0 {
			return errs.Invalid("network-scoped alias is supported only for containers in user defined networks")
		}
		if c := es.IPAMConfig; c != nil && (c.IPv4Address.IsValid() || c.IPv6Address.IsValid()) {
			return errs.Invalid("user-specified IP address is supported on user-defined networks only")
		}
	}
	if name := es.DriverOpts[optIfName]; name != "" && !isInterfaceName(name) {
		return errs.Invalid("invalid interface name %q: %s", name, wantInterfaceName)
	}
	for _, alias := range es.Aliases {
		if strings.ContainsFunc(alias, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
			return errs.Invalid("invalid alias %q: it has a blank or a control character in it", alias)
		}
	}
	if mac := es.MacAddress; len(mac) > 0 && (len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6))) {
		return errs.Invalid("invalid MAC address %s: want the address of one Ethernet interface, such as 02:42:c0:00:02:01", mac)
	}
	_, err := sysctlsOf(es)
	return err
}

// validate checks the settings of a connection to the network.
func (n *object) validate(es *network.EndpointSettings) error {
	if es == nil || es.IPAMConfig == nil {
		return nil
	}
	want := *es.IPAMConfig
	if n.Driver == driverHost || n.Driver == driverNull {
		return nil // these have no addresses
	}
	if predefined(n.Name) && (want.IPv4Address.IsValid() || want.IPv6Address.IsValid()) {
		return errs.Invalid("user-specified IP address is supported on user-defined networks only")
	}
	for _, f := range []struct {
		on   bool
		want netip.Addr
	}{{n.EnableIPv4, want.IPv4Address}, {n.EnableIPv6, want.IPv6Address}} {
		if !f.want.IsValid() {
			continue
		}
		if !f.on {
			return errs.Invalid("invalid address %s: network %s has no addresses of that family", f.want, n.Name)
		}
		if !slices.ContainsFunc(n.Subnets, func(s subnet) bool { return s.Prefix.Contains(f.want) }) {
			return errs.Invalid("invalid endpoint settings:\nno configured subnet contains IP address %s", f.want)
		}
	}
	for _, a := range want.LinkLocalIPs {
		if !a.IsLinkLocalUnicast() {
			return errs.Invalid("invalid link-local address %s", a)
		}
	}
	return nil
}

// sysctlsOf returns the sysctls of an endpoint's interface, as paths below
// /proc/sys with IFNAME for the interface's name. Docker's command line makes
// that lower case, so ifname is accepted, too.
func sysctlsOf(es *network.EndpointSettings) ([][2]string, error) {
	if es == nil || es.DriverOpts[optSysctls] == "" {
		return nil, nil
	}
	var out [][2]string
	for _, each := range strings.Split(es.DriverOpts[optSysctls], ",") {
		key, value, ok := strings.Cut(each, "=")
		parts := strings.Split(key, ".")
		if !ok || len(parts) != 5 || parts[0] != "net" || parts[3] != "IFNAME" && parts[3] != "ifname" || strings.ContainsAny(key, "/ ") {
			return nil, errs.Invalid("invalid option %s: %q: want net.X.Y.IFNAME.Z=VALUE", optSysctls, each)
		}
		if parts[1] != "ipv4" && parts[1] != "ipv6" && parts[1] != "mpls" {
			return nil, errs.Invalid("invalid option %s: %q: only net.ipv4, net.ipv6 and net.mpls can be set on an interface", optSysctls, each)
		}
		parts[3] = "IFNAME"
		out = append(out, [2]string{strings.Join(parts, "/"), value})
	}
	return out, nil
}

// withoutIPv6 reports whether an endpoint's settings switch IPv6 off on its
// interface. It then gets no IPv6 address, as in Docker.
func withoutIPv6(es *network.EndpointSettings) bool {
	sysctls, err := sysctlsOf(es)
	return err == nil && slices.Contains(sysctls, [2]string{"net/ipv6/conf/IFNAME/disable_ipv6", "1"})
}
