package oci

import (
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func validateNetwork(c *container.Config, hc *container.HostConfig) error {
	if err := validateNetworkMode(c, hc); err != nil {
		return err
	}
	for port, bindings := range hc.PortBindings {
		if !port.IsValid() || port.Num() == 0 {
			return invalid("invalid port specification: %q", port.String())
		}
		switch port.Proto() {
		case network.TCP, network.UDP, network.SCTP:
		default:
			return invalid("invalid port specification: %q: unknown protocol", port.String())
		}
		for _, b := range bindings {
			if b.HostPort == "" {
				continue // the kernel's choice
			}
			if _, err := network.ParsePortRange(b.HostPort); err != nil {
				return invalid("invalid port specification: %q", b.HostPort)
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
			return invalid("invalid DNS server: the address is empty")
		}
	}
	for _, s := range hc.DNSSearch {
		if s == "" || strings.ContainsAny(s, " \t\r\n#;\x00") {
			return invalid("%q is not a valid DNS search domain", s)
		}
	}
	for _, o := range hc.DNSOptions {
		if o == "" || strings.ContainsAny(o, " \t\r\n#;\x00") {
			return invalid("%q is not a valid DNS option", o)
		}
	}
	return nil
}

func validateNetworkMode(c *container.Config, hc *container.HostConfig) error {
	mode := hc.NetworkMode
	if mode.IsHost() && len(hc.Links) > 0 {
		return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	if !mode.IsContainer() {
		if strings.Contains(string(mode), ":") {
			return invalid("invalid network mode: %s", mode)
		}
		return nil
	}
	switch {
	case mode.ConnectedContainer() == "":
		return invalid("invalid network mode: invalid container format container:<name|id>")
	case hc.UTSMode.IsHost():
		// No hostname of its own: nothing to conflict.
	case c.Hostname != "":
		return invalid("conflicting options: hostname and the network mode")
	}
	switch {
	case len(hc.Links) > 0:
		return invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
	case len(hc.DNS) > 0 || len(hc.DNSSearch) > 0 || len(hc.DNSOptions) > 0:
		return invalid("conflicting options: dns and the network mode")
	case len(hc.ExtraHosts) > 0:
		return invalid("conflicting options: custom host-to-IP mapping and the network mode")
	case len(hc.PortBindings) > 0 || hc.PublishAllPorts:
		return invalid("conflicting options: port publishing and the container type network mode")
	case len(c.ExposedPorts) > 0:
		return invalid("conflicting options: port exposing and the container type network mode")
	}
	return nil
}

// HostGateway is the address in an extra host that stands for the host.
const HostGateway = "host-gateway"

// ParseExtraHost splits "name:address" or "name=address". The address is an IP
// address, in brackets or not, or HostGateway, for which it returns the zero
// address.
func ParseExtraHost(s string) (name string, addr netip.Addr, err error) {
	name, ip, ok := strings.Cut(s, "=")
	if !ok {
		name, ip, ok = strings.Cut(s, ":")
	}
	if !ok || name == "" {
		return "", addr, invalid("bad format for add-host: %q", s)
	}
	if strings.ContainsAny(name, " \t\r\n#\x00") {
		return "", addr, invalid("bad format for add-host: %q: the name has characters that /etc/hosts can't carry", s)
	}
	if ip == HostGateway {
		return name, addr, nil
	}
	if len(ip) > 2 && ip[0] == '[' && ip[len(ip)-1] == ']' {
		ip = ip[1 : len(ip)-1]
	}
	addr, perr := netip.ParseAddr(ip)
	if perr != nil {
		return "", addr, invalid("invalid IP address in add-host: %q", ip)
	}
	return name, addr, nil
}

// ParseLink splits "name:alias" of HostConfig.Links; without an alias it is
// the name.
func ParseLink(s string) (name, alias string, err error) {
	if s == "" {
		return "", "", invalid("empty string specified for links")
	}
	name, alias, ok := strings.Cut(s, ":")
	if !ok {
		return s, s, nil
	}
	if strings.Contains(alias, ":") || name == "" || alias == "" {
		return "", "", invalid("bad format for links: %s", s)
	}
	// The form that inspect shows: /name:/container/alias.
	if strings.HasPrefix(name, "/") {
		alias = alias[strings.LastIndex(alias, "/")+1:]
		name = name[1:]
	}
	return name, alias, nil
}
