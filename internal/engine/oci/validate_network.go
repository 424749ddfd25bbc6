// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"net/netip"
	"strings"
	"unicode"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
)

func validateNetwork(c *container.Config, hc *container.HostConfig) error {
	if err := validateNetworkMode(c, hc); err != nil {
		return err
	}
	for port, bindings := range hc.PortBindings {
		if !port.IsValid() || port.Num() == 0 {
			return errs.Invalid("invalid port specification: %q", port.String())
		}
		switch port.Proto() {
		case network.TCP, network.UDP, network.SCTP:
		default:
			return errs.Invalid("invalid port specification: %q: unknown protocol", port.String())
		}
		for _, b := range bindings {
			if b.HostIP.Zone() != "" {
				return errs.Invalid("invalid port specification: the host address %q names an interface, which is not supported for published ports", b.HostIP.String())
			}
			if b.HostPort == "" {
				continue // the engine chooses a port
			}
			if _, err := network.ParsePortRange(b.HostPort); err != nil {
				return errs.Invalid("invalid port specification: %q", b.HostPort)
			}
		}
	}
	for _, eh := range hc.ExtraHosts {
		if _, _, err := ParseExtraHost(eh); err != nil {
			return err
		}
	}
	for _, l := range hc.Links {
		if _, _, err := ParseLink(l); err != nil {
			return err
		}
	}
	for _, a := range hc.DNS {
		if !a.IsValid() {
			return errs.Invalid("invalid DNS server: the address is empty")
		}
		// The zone after % may be any text.
		if a.Zone() != "" && !isWord(a.Zone()) {
			return errs.Invalid("invalid DNS server %q", a.String())
		}
	}
	for _, s := range hc.DNSSearch {
		if !isWord(s) {
			return errs.Invalid("%q is not a valid DNS search domain", s)
		}
	}
	for _, o := range hc.DNSOptions {
		if !isWord(o) {
			return errs.Invalid("%q is not a valid DNS option", o)
		}
	}
	return nil
}

// isWord reports whether a text stays one word in /etc/hosts and in
// /etc/resolv.conf: programs that read them split lines at blanks and end them at
// line breaks, and ignore comments.
func isWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r == '#' || r == ';' || unicode.IsSpace(r) || unicode.IsControl(r)
	})
}

func validateNetworkMode(c *container.Config, hc *container.HostConfig) error {
	mode := hc.NetworkMode
	if mode.IsHost() && len(hc.Links) > 0 {
		return errs.Invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	if !mode.IsContainer() {
		if strings.Contains(string(mode), ":") {
			return errs.Invalid("invalid network mode: %s", mode)
		}
		return nil
	}
	switch {
	case mode.ConnectedContainer() == "":
		return errs.Invalid("invalid network mode: invalid container format container:<name|id>")
	case hc.UTSMode.IsHost():
		// The container has no host name of its own, so nothing conflicts.
	case c.Hostname != "":
		return errs.Invalid("conflicting options: hostname and the network mode")
	}
	switch {
	case len(hc.Links) > 0:
		return errs.Invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
	case len(hc.DNS) > 0 || len(hc.DNSSearch) > 0 || len(hc.DNSOptions) > 0:
		return errs.Invalid("conflicting options: dns and the network mode")
	case len(hc.ExtraHosts) > 0:
		return errs.Invalid("conflicting options: custom host-to-IP mapping and the network mode")
	case len(hc.PortBindings) > 0 || hc.PublishAllPorts:
		return errs.Invalid("conflicting options: port publishing and the container type network mode")
	case len(c.ExposedPorts) > 0:
		return errs.Invalid("conflicting options: port exposing and the container type network mode")
	}
	return nil
}

// HostGateway stands for the host's address in an extra host.
const HostGateway = "host-gateway"

// ParseExtraHost splits "name:address" or "name=address". The address is an IP
// address, with or without brackets, or HostGateway, for which it returns the
// zero Addr.
func ParseExtraHost(s string) (name string, addr netip.Addr, err error) {
	name, ip, ok := strings.Cut(s, "=")
	if !ok {
		name, ip, ok = strings.Cut(s, ":")
	}
	if !ok || name == "" {
		return "", addr, errs.Invalid("bad format for add-host: %q", s)
	}
	if !isWord(name) {
		return "", addr, errs.Invalid("bad format for add-host: %q: the name has characters that /etc/hosts can't carry", s)
	}
	if ip == HostGateway {
		return name, addr, nil
	}
	if len(ip) > 2 && ip[0] == '[' && ip[len(ip)-1] == ']' {
		ip = ip[1 : len(ip)-1]
	}
	addr, perr := netip.ParseAddr(ip)
	if perr != nil {
		return "", addr, errs.Invalid("invalid IP address in add-host: %q", ip)
	}
	return name, addr, nil
}

// ParseLink splits "name:alias" of HostConfig.Links. Without an alias it returns
// the name as alias.
func ParseLink(s string) (name, alias string, err error) {
	if s == "" {
		return "", "", errs.Invalid("empty string specified for links")
	}
	if !isWord(s) {
		return "", "", errs.Invalid("bad format for links: %q", s)
	}
	name, alias, ok := strings.Cut(s, ":")
	if !ok {
		return s, s, nil
	}
	if strings.Contains(alias, ":") || name == "" || alias == "" {
		return "", "", errs.Invalid("bad format for links: %s", s)
	}
	// The form that inspect shows: /name:/container/alias.
	if strings.HasPrefix(name, "/") {
		alias = alias[strings.LastIndex(alias, "/")+1:]
		name = name[1:]
	}
	return name, alias, nil
}
