package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/ipam"
	"holdfast/internal/network/nft"
)

// Request is what a container asks of the network.
type Request struct {
	ID   string // of the container
	Name string // for messages
	// Mode is HostConfig.NetworkMode: default, bridge, host, none,
	// container:ID (resolved to the full ID) or a network's name or ID.
	Mode string
	// Endpoints are the settings that were given for networks, by name.
	Endpoints    map[string]*network.EndpointSettings
	PortBindings network.PortMap
	Exposed      network.PortSet
	// PublishAll publishes what is exposed and has no binding.
	PublishAll bool
	// Last are the endpoints of the container's life before. What is still free
	// of their addresses is given out again.
	Last []Endpoint
}

// Prepare gives the container addresses and host ports. The ports are kept by
// the sockets in what it returns besides the Sandbox, which belong to the
// caller; nothing else is done in the kernel. A Sandbox of an earlier life of
// the container is released first.
//
// Errors: ErrNotFound (no such network or container), ErrInvalidArgument,
// ErrResourceExhausted (no addresses left), ErrFailedPrecondition (container:ID
// does not run), ErrInternal (host ports in use). After an error nothing is
// kept.
func (m *Manager) Prepare(ctx context.Context, r Request) (Sandbox, []Reserved, error) {
	m.mu.Lock()
	old, again := m.sandboxes[r.ID]
	m.mu.Unlock()
	if again {
		if err := m.Release(ctx, old); err != nil {
			return Sandbox{}, nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, reserved, err := m.prepare(r)
	if err != nil {
		m.forget(s)
		return Sandbox{}, nil, err
	}
	m.sandboxes[r.ID] = s
	return s, reserved, nil
}

// prepare returns what it took also when it fails. m.mu is held.
func (m *Manager) prepare(r Request) (Sandbox, []Reserved, error) {
	s := Sandbox{Schema: SandboxSchema, ID: randomID(), Container: r.ID, Mode: r.Mode}
	for p := range r.Exposed {
		s.Exposed = append(s.Exposed, p)
	}
	for p := range r.PortBindings {
		if _, ok := r.Exposed[p]; !ok {
			s.Exposed = append(s.Exposed, p)
		}
	}
	sortPorts(s.Exposed)
	if s.Mode == "" || s.Mode == network.NetworkDefault {
		s.Mode = network.NetworkBridge
	}
	if id, ok := strings.CutPrefix(s.Mode, "container:"); ok {
		other, ok := m.sandboxes[id]
		if !ok {
			return s, nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("cannot join network of a non running container: %s", id))
		}
		s.Netns, s.Shared = other.Netns, true
		return s, nil, nil
	}
	n, err := m.lookup(s.Mode)
	if s.Mode == network.NetworkBridge && m.opts.BridgeName == "none" {
		// As in Docker: it has its loopback interface alone.
		n, err = nil, nil
	}
	if err != nil {
		return s, nil, err
	}
	if n != nil && n.ConfigOnly {
		return s, nil, n.usable()
	}
	if n != nil && (n.Driver == driverHost || n.Driver == driverNull) {
		e := Endpoint{ID: randomID(), Network: n.Name, NetworkID: n.ID, Settings: settingsFor(r, n)}
		s.Endpoints = append(s.Endpoints, e)
		if n.Driver == driverNull {
			s.Netns = m.opts.netnsPath(r.ID)
		}
		return s, nil, nil
	}
	s.Netns = m.opts.netnsPath(r.ID)
	if n != nil {
		if err := m.connect(&s, r, n, settingsFor(r, n)); err != nil {
			return s, nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Endpoints)) {
		if n == nil && name == network.NetworkBridge {
			continue
		}
		other, err := m.lookup(name)
		if name == network.NetworkDefault {
			other, err = m.networks[network.NetworkBridge], nil
		}
		if err != nil {
			return s, nil, err
		}
		if other == nil || slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.NetworkID == other.ID }) {
			continue // the one of the mode
		}
		if err := other.usable(); err != nil {
			return s, nil, err
		}
		if other.Driver == driverHost || other.Driver == driverNull {
			return s, nil, invalid("container cannot be connected to multiple networks with one of the networks in %s mode", other.Name)
		}
		if err := m.connect(&s, r, other, r.Endpoints[name].Copy()); err != nil {
			return s, nil, err
		}
	}
	reserved, err := m.publish(&s, r)
	if err != nil {
		err = prefixed(fmt.Sprintf("driver failed programming external connectivity on endpoint %s (%s): ", r.Name, s.Endpoints[0].ID), err)
	}
	return s, reserved, err
}

func settingsFor(r Request, n *object) *network.EndpointSettings {
	for _, key := range []string{n.Name, n.ID, r.Mode, network.NetworkDefault} {
		if es := r.Endpoints[key]; es != nil {
			return es.Copy()
		}
	}
	return nil
}

// connect adds an endpoint with addresses to a sandbox. m.mu is held.
func (m *Manager) connect(s *Sandbox, r Request, n *object, es *network.EndpointSettings) error {
	e, err := m.endpoint(s, r, n, es)
	if err != nil {
		return err
	}
	s.Endpoints = append(s.Endpoints, e)
	return nil
}

// endpoint makes an endpoint with addresses. m.mu is held.
func (m *Manager) endpoint(s *Sandbox, r Request, n *object, es *network.EndpointSettings) (Endpoint, error) {
	t := m.traits(n.record)
	if err := n.judge(es); err != nil {
		return Endpoint{}, err
	}
	if _, err := sysctlsOf(es); err != nil {
		return Endpoint{}, err
	}
	e := Endpoint{
		ID: randomID(), Network: n.Name, NetworkID: n.ID, Settings: es,
		Name: ifName(s, t.prefix), MTU: t.mtu,
	}
	if es != nil && es.DriverOpts[optIfName] != "" {
		e.Name = es.DriverOpts[optIfName]
		if len(e.Name) > 15 || slices.ContainsFunc(s.Endpoints, func(o Endpoint) bool { return o.Name == e.Name }) {
			return e, invalid("invalid interface name %q: it has more than 15 characters, or another network of the container has it", e.Name)
		}
	}
	if n.Bridge != nil {
		e.Bridge, e.Isolated, e.HostName = n.Bridge.Name, !t.icc && !bridge.Filtered(), hostName(e.ID)
		e.Rules = &Rules{IPv4: m.opts.Iptables, IPv6: m.opts.Ip6tables, ICC: t.icc, Masquerade: t.masq, Direct: [2]bool{t.direct(0), t.direct(1)}}
	}
	if n.Parent != nil {
		e.Link = &LinkSettings{Kind: n.Driver, Parent: n.Parent.Name, Mode: n.Parent.Mode}
		if n.Options[optMTU] == "" {
			e.MTU = 0 // the parent's
		}
	}
	var want network.EndpointIPAMConfig
	if es != nil && es.IPAMConfig != nil {
		want = *es.IPAMConfig
	}
	var last Endpoint
	if i := slices.IndexFunc(r.Last, func(o Endpoint) bool { return o.NetworkID == n.ID }); i >= 0 {
		last = r.Last[i]
	}
	for _, f := range []struct {
		on, v6     bool
		want, last netip.Addr
		to         *Addressing
	}{
		{n.EnableIPv4, false, want.IPv4Address, last.IPv4.Address.Addr(), &e.IPv4},
		{n.EnableIPv6, true, want.IPv6Address, last.IPv6.Address.Addr(), &e.IPv6},
	} {
		if !f.on {
			continue
		}
		a, err := n.allocate(f.v6, f.want, f.last)
		if err != nil {
			m.forgetEndpoint(e)
			return e, err
		}
		*f.to = a
	}
	switch {
	case e.Link != nil && e.Link.Kind == driverIPvlan:
		// It has the parent's.
	case es != nil && len(es.MacAddress) > 0:
		e.MAC = es.MacAddress.String()
		if other := m.hasMAC(n, e.MAC); other != "" {
			m.forgetEndpoint(e)
			return e, errdefs.ErrConflict.WithMessage(fmt.Sprintf("MAC address %s is already in use on network %s by container %s: the network would lose what is sent to either; give each container its own", e.MAC, n.Name, other))
		}
	case e.IPv4.Address.IsValid():
		e.MAC = macOf(e.IPv4.Address.Addr()).String()
	default:
		e.MAC = macOf(e.IPv6.Address.Addr()).String()
	}
	// Somebody may have named the one that goes with this address.
	for e.MAC != "" && m.hasMAC(n, e.MAC) != "" {
		e.MAC = randomMAC().String()
	}
	return e, nil
}

// hasMAC is the short ID of the container that has a hardware address on a
// network. m.mu is held.
func (m *Manager) hasMAC(n *object, mac string) string {
	for id, s := range m.sandboxes {
		for _, e := range s.Endpoints {
			if e.NetworkID == n.ID && e.MAC == mac {
				return id[:min(12, len(id))]
			}
		}
	}
	return ""
}

// Judge says what is wrong with the settings of a network that a container is
// created with, so that none is made that can't be started. The network itself
// may come later. Errors: ErrInvalidArgument.
func (m *Manager) Judge(ref string, es *network.EndpointSettings) error {
	if ref == "" || ref == network.NetworkDefault {
		ref = network.NetworkBridge
	}
	if err := judgeAsked(ref, es); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup(ref)
	if err != nil {
		return nil
	}
	if err := judgeAsked(n.Name, es); err != nil {
		return err
	}
	return n.judge(es)
}

// judgeAsked says what is wrong with the settings that somebody gives for a
// network of that name. Those that are stored are not judged by it again: an
// earlier release may have let them pass.
func judgeAsked(name string, es *network.EndpointSettings) error {
	if es == nil {
		return nil
	}
	if predefined(name) {
		if len(es.Aliases) > 0 {
			return invalid("network-scoped alias is supported only for containers in user defined networks")
		}
		if c := es.IPAMConfig; c != nil && (c.IPv4Address.IsValid() || c.IPv6Address.IsValid()) {
			return invalid("user specified IP address is supported on user defined networks only")
		}
	}
	if mac := es.MacAddress; len(mac) > 0 && (len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6))) {
		return invalid("invalid MAC address %s: want the address of one Ethernet interface, such as 02:42:c0:00:02:01", mac)
	}
	_, err := sysctlsOf(es)
	return err
}

// judge says what is wrong with the settings of a connection to the network.
func (n *object) judge(es *network.EndpointSettings) error {
	if es == nil || es.IPAMConfig == nil {
		return nil
	}
	want := *es.IPAMConfig
	if n.Driver == driverHost || n.Driver == driverNull {
		return nil // there are no addresses
	}
	if predefined(n.Name) && (want.IPv4Address.IsValid() || want.IPv6Address.IsValid()) {
		return invalid("user specified IP address is supported on user defined networks only")
	}
	for _, f := range []struct {
		on   bool
		want netip.Addr
	}{{n.EnableIPv4, want.IPv4Address}, {n.EnableIPv6, want.IPv6Address}} {
		if !f.want.IsValid() {
			continue
		}
		if !f.on {
			return invalid("invalid address %s: network %s has no addresses of that family", f.want, n.Name)
		}
		if !slices.ContainsFunc(n.Subnets, func(s subnet) bool { return s.Prefix.Contains(f.want) }) {
			return invalid("invalid address %s: It does not belong to any of this network's subnets", f.want)
		}
	}
	for _, a := range want.LinkLocalIPs {
		if !a.IsLinkLocalUnicast() {
			return invalid("invalid link-local address %s", a)
		}
	}
	return nil
}

// sysctlsOf are the settings of an endpoint's interface, as paths below
// /proc/sys with IFNAME for its name. Docker's command line makes small letters
// of that.
func sysctlsOf(es *network.EndpointSettings) ([][2]string, error) {
	if es == nil || es.DriverOpts[optSysctls] == "" {
		return nil, nil
	}
	var out [][2]string
	for _, each := range strings.Split(es.DriverOpts[optSysctls], ",") {
		key, value, ok := strings.Cut(each, "=")
		parts := strings.Split(key, ".")
		if !ok || len(parts) != 5 || parts[0] != "net" || parts[3] != "IFNAME" && parts[3] != "ifname" || strings.ContainsAny(key, "/ ") {
			return nil, invalid("invalid option %s: %q: want net.X.Y.IFNAME.Z=VALUE", optSysctls, each)
		}
		if parts[1] != "ipv4" && parts[1] != "ipv6" && parts[1] != "mpls" {
			return nil, invalid("invalid option %s: %q: only net.ipv4, net.ipv6 and net.mpls can be set on an interface", optSysctls, each)
		}
		parts[3] = "IFNAME"
		out = append(out, [2]string{strings.Join(parts, "/"), value})
	}
	return out, nil
}

// hostName is the name of an endpoint's interface on the host.
func hostName(endpoint string) string { return "veth" + endpoint[:11] }

// allocate takes an address: the one that is wanted, or the last one that the
// container had if it is free, or another.
func (n *object) allocate(v6 bool, want, last netip.Addr) (Addressing, error) {
	if !want.IsValid() && last.IsValid() {
		if a, err := n.allocate(v6, last, netip.Addr{}); err == nil {
			return a, nil
		}
	}
	var found bool
	for i, a := range n.allocators {
		sub := n.Subnets[i]
		if sub.Prefix.Addr().Is6() != v6 || want.IsValid() && !a.Contains(want) {
			continue
		}
		found = true
		addr, err := want, error(nil)
		if want.IsValid() {
			err = a.Reserve(want)
		} else {
			addr, err = a.Next()
		}
		if errors.Is(err, ipam.ErrExhausted) {
			continue
		}
		if err != nil {
			return Addressing{}, errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
		out := Addressing{Address: netip.PrefixFrom(addr, sub.Prefix.Bits())}
		if !n.Internal {
			out.Gateway = sub.Gateway
		}
		if sub.Bridge.IsValid() {
			out.BridgeAddress = netip.PrefixFrom(sub.Bridge, sub.Prefix.Bits())
		}
		return out, nil
	}
	if want.IsValid() && !found {
		return Addressing{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid address %s: It does not belong to any of this network's subnets", want))
	}
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	return Addressing{}, errdefs.ErrResourceExhausted.WithMessage(fmt.Sprintf("no available %s addresses on this network's address pools: %s (%s)", family, n.Name, n.ID))
}

// keepUnless gives the ports back if there is an error.
func keepUnless(err error, reserved []Reserved) []Reserved {
	if err == nil {
		return reserved
	}
	for _, r := range reserved {
		r.File.Close()
	}
	return nil
}

// publish takes the host ports of s. m.mu is held.
func (m *Manager) publish(s *Sandbox, r Request) (reserved []Reserved, err error) {
	defer func() { reserved = keepUnless(err, reserved) }()
	if s.gateway(false) < 0 && s.gateway(true) < 0 {
		return nil, nil // internal networks only: nothing leads there
	}
	for _, p := range s.Exposed {
		bindings := r.PortBindings[p]
		if len(bindings) == 0 {
			if _, bound := r.PortBindings[p]; !bound && !r.PublishAll {
				continue
			}
			bindings = []network.PortBinding{{}}
		}
		if proto := p.Proto(); proto != network.TCP && proto != network.UDP && proto != network.SCTP {
			return reserved, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid port %s: unknown protocol", p))
		}
		if p.Num() == 0 {
			return reserved, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid port %s: want 1 to 65535", p))
		}
		for _, b := range bindings {
			ms, files, err := m.reserve(s, p, b)
			if err != nil {
				return reserved, err
			}
			s.Ports = append(s.Ports, ms...)
			reserved = append(reserved, m.reservedOf(ms, files)...)
		}
	}
	return reserved, nil
}

// publishMore takes the host ports that s could not be published on before it had
// an address of that family: those of IPv4, as the host's IPv6 leads to either.
// They have the numbers that the container has on IPv6 already. m.mu is held.
func (m *Manager) publishMore(s *Sandbox, r Request) (reserved []Reserved, err error) {
	defer func() { reserved = keepUnless(err, reserved) }()
	for _, have := range slices.Clone(s.Ports) {
		p, ok := network.PortFrom(have.ContainerPort, network.IPProtocol(have.Proto))
		if !ok || have.HostPort == 0 || have.HostIP != netip.IPv6Unspecified() || askedFor(r.PortBindings[p], have) {
			continue
		}
		ms, _, err := m.mappings(s, p, netip.Addr{})
		if err != nil {
			continue // there is still none
		}
		for _, more := range ms {
			more.HostPort = have.HostPort
			if slices.ContainsFunc(s.Ports, func(o PortMapping) bool {
				return o.Proto == more.Proto && o.HostIP == more.HostIP && o.HostPort == more.HostPort
			}) {
				continue
			}
			files, err := m.ports.reserve([]PortMapping{more}, s.Container, m.opts.UserlandProxy)
			if err != nil {
				return reserved, err
			}
			s.Ports = append(s.Ports, more)
			reserved = append(reserved, m.reservedOf([]PortMapping{more}, files)...)
		}
	}
	return reserved, nil
}

// askedFor reports whether one of a port's bindings names the mapping's address
// of the host.
func askedFor(bindings []network.PortBinding, p PortMapping) bool {
	return slices.ContainsFunc(bindings, func(b network.PortBinding) bool {
		first, last, err := ParseHostPort(b.HostPort)
		return err == nil && b.HostIP == p.HostIP && (first == 0 || first <= p.HostPort && p.HostPort <= last)
	})
}

func (m *Manager) reservedOf(ms []PortMapping, files []*os.File) []Reserved {
	var out []Reserved
	for i, f := range files {
		if f == nil {
			continue
		}
		out = append(out, Reserved{Proto: ms[i].Proto, Target: m.opts.target(ms[i]), File: f})
	}
	return out
}

// reserve takes the port of one binding on each of its addresses.
func (m *Manager) reserve(s *Sandbox, p network.Port, b network.PortBinding) ([]PortMapping, []*os.File, error) {
	first, last, err := ParseHostPort(b.HostPort)
	if err != nil {
		return nil, nil, err
	}
	ms, direct, err := m.mappings(s, p, b.HostIP)
	if err != nil {
		return nil, nil, err
	}
	if len(direct) > 0 && len(ms) == 0 && (first != 0 || b.HostIP.IsValid() && !b.HostIP.IsUnspecified()) {
		m.opts.Log.Warn("the network is routed: a published port is reached at the container's address, the host's address and port are not used",
			"container", s.Container, "port", p, "host", b.HostIP, "hostPort", b.HostPort)
	}
	if len(ms) == 0 {
		return direct, make([]*os.File, len(direct)), nil
	}
	tries := int(last) - int(first) + 1
	chosen := first == 0
	if chosen {
		tries = int(m.ports.last) - int(m.ports.first) + 1
	}
	for i := range tries {
		port := first + uint16(i)
		if chosen {
			port = m.ports.next()
		}
		for j := range ms {
			ms[j].HostPort = port
		}
		files, err := m.ports.reserve(ms, s.Container, m.opts.UserlandProxy)
		if err == nil {
			return append(ms, direct...), append(files, make([]*os.File, len(direct))...), nil
		}
		if !errors.As(err, new(errInUse)) {
			return nil, nil, err
		}
		if first == last && !chosen {
			return nil, nil, err
		}
	}
	if chosen {
		return nil, nil, errdefs.ErrResourceExhausted.WithMessage(fmt.Sprintf("all ports from %d to %d are allocated", m.ports.first, m.ports.last))
	}
	return nil, nil, errdefs.ErrInternal.WithMessage(fmt.Sprintf("Bind for %s failed: all ports of the range %s are allocated", ms[0].HostIP, b.HostPort))
}

// mappings says on which addresses of the host a port is published. Without an
// address it is on all of them, IPv6 included: where the container has none,
// or the kernel can't translate, its shim forwards.
//
// The address is the one of the network that the container's answers go by. On
// a network that is routed the port is reached there alone: these are direct,
// and have no port of the host.
func (m *Manager) mappings(s *Sandbox, p network.Port, host netip.Addr) (out, direct []PortMapping, err error) {
	var e Endpoint
	var routed [2]bool
	for family, v6 := range []bool{false, true} {
		i := s.gateway(v6)
		if i < 0 {
			continue
		}
		if n := m.networks[s.Endpoints[i].Network]; n != nil {
			routed[family] = m.traits(n.record).access[family] == nft.Routed
		}
		if v6 {
			e.IPv6 = s.Endpoints[i].IPv6
		} else {
			e.Network, e.IPv4 = s.Endpoints[i].Network, s.Endpoints[i].IPv4
		}
	}
	if !host.IsValid() {
		host = m.opts.DefaultBindIP
		if n := m.networks[e.Network]; n != nil {
			host = m.traits(n.record).bindIP
		}
		if host.Unmap() == netip.IPv4Unspecified() {
			host = netip.Addr{} // as a default it means all, not all of IPv4
		}
	}
	host = host.Unmap()
	hosts := []netip.Addr{host}
	if !host.IsValid() {
		hosts = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	for _, h := range hosts {
		target := e.IPv4.Address.Addr()
		translated := h.Is4() && m.opts.Iptables || h.Is6() && m.opts.Ip6tables
		if h.Is6() && e.IPv6.Address.IsValid() {
			target = e.IPv6.Address.Addr()
		}
		if target.IsValid() && routed[nft.FamilyOf(target)] {
			if target.Is4() == h.Is4() {
				direct = append(direct, PortMapping{Proto: string(p.Proto()), ContainerPort: p.Num(), HostIP: anyOf(target), Target: netip.AddrPortFrom(target, p.Num())})
			}
			continue
		}
		translated = translated && target.Is4() == h.Is4() && h != netip.IPv6Loopback()
		if !target.IsValid() || len(hosts) > 1 && h.Is6() && (!translated && !m.opts.UserlandProxy || !hostHasIPv6()) {
			continue
		}
		out = append(out, PortMapping{Proto: string(p.Proto()), ContainerPort: p.Num(), HostIP: h, Target: netip.AddrPortFrom(target, p.Num())})
	}
	if len(out)+len(direct) == 0 {
		return nil, nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("can't publish %s on %s: the container has no address of that family", p, host))
	}
	return out, direct, nil
}

// anyOf is the unspecified address of an address's family.
func anyOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// forget gives back what a sandbox has in memory. m.mu is held.
func (m *Manager) forget(s Sandbox) {
	for _, e := range s.Endpoints {
		m.forgetEndpoint(e)
	}
	m.ports.drop(s.Ports, s.Container)
}

func (m *Manager) forgetEndpoint(e Endpoint) {
	n := m.networks[e.Network]
	if n == nil {
		return
	}
	for _, a := range []Addressing{e.IPv4, e.IPv6} {
		for _, alloc := range n.allocators {
			if a.Address.IsValid() {
				alloc.Release(a.Address.Addr())
			}
		}
	}
}

func sortPorts(ps []network.Port) {
	slices.SortFunc(ps, func(a, b network.Port) int {
		if a.Num() != b.Num() {
			return int(a.Num()) - int(b.Num())
		}
		return strings.Compare(string(a.Proto()), string(b.Proto()))
	})
}

// prefixed puts words before an error's message and keeps its kind.
func prefixed(words string, err error) error { return &wordedError{words, err} }

type wordedError struct {
	words string
	err   error
}

func (e *wordedError) Error() string { return e.words + e.err.Error() }
func (e *wordedError) Unwrap() error { return e.err }

func hardwareAddr(s string) network.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil
	}
	return network.HardwareAddr(mac)
}
