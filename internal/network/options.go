// SPDX-License-Identifier: Apache-2.0

package network

import (
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/containerd/errdefs"

	"holdfast/internal/errs"
	"holdfast/internal/network/ipam"
)

// DefaultBridge is the name of the default network's bridge.
const DefaultBridge = "holdfast0"

// defaultTable is the nftables table of an engine with the default bridge.
const defaultTable = "holdfast"

// Pool is a range of addresses from which networks get their subnets.
type Pool = ipam.Pool

// Options are the daemon's options that concern networks. They apply to networks
// and containers that are made later: a running container keeps what its Sandbox
// says.
type Options struct {
	Root     string // directory of the records: data-root/networks
	ExecRoot string // network namespaces are mounted below its shim/<id>

	// BridgeName is the default network's bridge. If the bridge exists and the
	// engine did not make it, its addresses are used. "none" means no default
	// network.
	BridgeName string
	// BIP and BIP6 are the bridge's addresses, as in 172.26.0.1/16.
	BIP, BIP6 string
	// FixedCIDR is the part of the subnet that containers get their addresses
	// from. FixedCIDRv6 is the IPv6 subnet, unless BIP6 is given.
	FixedCIDR, FixedCIDRv6 string
	// DefaultGateway and DefaultGatewayV6 are the containers' default routes, if
	// these are not the bridge's own addresses.
	DefaultGateway, DefaultGatewayV6 string
	// Pools are where subnets come from if a request names none. Empty means
	// Docker's pools.
	Pools []Pool

	MTU int // bytes; 0 is 1500
	ICC bool
	// IPMasq translates the source of packets that leave the subnets to the host's
	// address (masquerading).
	IPMasq    bool
	IPForward bool // enable forwarding on the host
	// IPForwardNoDrop: don't drop packets that the host forwards only because the
	// engine switched forwarding on, and that do not concern containers.
	IPForwardNoDrop bool
	IPv6            bool
	// Iptables and Ip6tables: filter and translate IPv4, IPv6. Without either no
	// nftables table is made, and the shims forward published ports.
	Iptables, Ip6tables bool
	// UserlandProxy: shims forward what the kernel can't translate.
	UserlandProxy bool
	// DefaultBindIP is the host address of ports that name none. The zero value
	// means all addresses.
	DefaultBindIP netip.Addr

	// AllowDirect lets other hosts reach published ports at the containers' own
	// addresses.
	AllowDirect bool

	// NetworkOpts are default options of new networks, by driver.
	NetworkOpts map[string]map[string]string

	// Alive reports whether a daemon uses a data root. Nil means that none does.
	Alive func(dataRoot string) bool

	// Table is the nftables table. If empty, its name is derived from the bridge,
	// so that daemons with different bridges have different tables.
	Table string

	Log *slog.Logger
}

// parsed is Options with the text values parsed and checked.
type parsed struct {
	Options
	bip, bip6         netip.Prefix // address and length
	fixed, fixed6     netip.Prefix
	gateway, gateway6 netip.Addr
}

func (o Options) parse() (parsed, error) {
	p := parsed{Options: o}
	if p.BridgeName == "" {
		p.BridgeName = DefaultBridge
	}
	if !isInterfaceName(p.BridgeName) {
		return p, errs.Invalid("invalid bridge name %q: %s", p.BridgeName, wantInterfaceName)
	}
	if p.Table == "" {
		p.Table = tableOf(p.BridgeName)
	}
	if p.MTU == 0 {
		p.MTU = 1500
	}
	if p.MTU < 68 || p.MTU > 65535 {
		return p, errs.Invalid("invalid mtu %d: want 68 to 65535", p.MTU)
	}
	if len(p.Pools) == 0 {
		p.Pools = ipam.DefaultPools
	}
	for _, pool := range p.Pools {
		if err := pool.Check(); err != nil {
			return p, errdefs.ErrInvalidArgument.WithMessage("invalid default address pool: " + err.Error())
		}
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	for _, f := range []struct {
		name, text string
		v6, host   bool
		to         *netip.Prefix
	}{
		{"bip", o.BIP, false, true, &p.bip},
		{"bip6", o.BIP6, true, true, &p.bip6},
		{"fixed-cidr", o.FixedCIDR, false, false, &p.fixed},
		{"fixed-cidr-v6", o.FixedCIDRv6, true, false, &p.fixed6},
	} {
		if f.text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(f.text)
		if err != nil || prefix.Addr().Is6() != f.v6 {
			return p, errs.Invalid("invalid %s %q: want an IPv%s address with a prefix length", f.name, f.text, map[bool]string{false: "4", true: "6"}[f.v6])
		}
		if f.host && prefix.Addr() == prefix.Masked().Addr() && prefix.Bits() < prefix.Addr().BitLen()-1 {
			return p, errs.Invalid("invalid %s %q: it is the network's address, the bridge needs one of its own such as %s", f.name, f.text, netip.PrefixFrom(prefix.Addr().Next(), prefix.Bits()))
		}
		*f.to = prefix
	}
	for _, f := range []struct {
		name, text string
		v6         bool
		to         *netip.Addr
	}{
		{"default-gateway", o.DefaultGateway, false, &p.gateway},
		{"default-gateway-v6", o.DefaultGatewayV6, true, &p.gateway6},
	} {
		if f.text == "" {
			continue
		}
		addr, err := netip.ParseAddr(f.text)
		if err != nil || addr.Is6() != f.v6 {
			return p, errs.Invalid("invalid %s %q", f.name, f.text)
		}
		*f.to = addr
	}
	return p, nil
}

func (p *parsed) netnsPath(container string) string {
	return filepath.Join(p.ExecRoot, "shim", container, "netns")
}
