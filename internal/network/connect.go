package network

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/nft"
)

// Connecting and disconnecting a container that runs goes like a start: With
// or Without give the Sandbox as it shall be, in memory; the engine stores it;
// Change makes the kernel agree, and may be repeated after a crash.

// leadPorts makes published ports lead to the addresses that the container's
// answers go by now. Without any they lead nowhere, and stay its own.
func (s *Sandbox) leadPorts() {
	s.Moved = true
	s.Ports = slices.Clone(s.Ports)
	var v4, v6 netip.Addr
	if i := s.gateway(false); i >= 0 {
		v4 = s.Endpoints[i].IPv4.Address.Addr()
	}
	if i := s.gateway(true); i >= 0 {
		v6 = s.Endpoints[i].IPv6.Address.Addr()
	}
	for j := range s.Ports {
		p := &s.Ports[j]
		to := v4
		if p.HostIP.Is6() && v6.IsValid() {
			to = v6
		}
		p.Target = netip.AddrPort{}
		if to.IsValid() {
			p.Target = netip.AddrPortFrom(to, p.ContainerPort)
		}
	}
}

// With adds an endpoint on a network to a container's sandbox. Errors:
// ErrNotFound, ErrPermissionDenied (it is on that network, or can't be on
// several), ErrInvalidArgument, ErrResourceExhausted, ErrInternal (host ports
// in use).
//
// A container that had no network leading out publishes its ports now, and one
// that had no address of IPv4 those on the host's IPv4; the sockets that keep
// them are the caller's.
func (m *Manager) With(s Sandbox, r Request, ref string, es *network.EndpointSettings) (Sandbox, []Reserved, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup(ref)
	if err != nil {
		return s, nil, err
	}
	if err := m.joinable(s, n); err != nil {
		return s, nil, err
	}
	s.Endpoints = slices.Clone(s.Endpoints)
	// A container of the network none has nothing but its loopback interface.
	s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e Endpoint) bool { return e.Network == network.NetworkNone })
	if err := m.connect(&s, r, n, es.Copy()); err != nil {
		return s, nil, err
	}
	before := len(s.Ports)
	s.Ports = slices.Clone(s.Ports)
	publish := m.publishMore
	if before == 0 {
		publish = m.publish
	}
	reserved, err := publish(&s, r)
	if err != nil {
		m.forgetEndpoint(s.Endpoints[len(s.Endpoints)-1])
		m.ports.drop(s.Ports[before:], s.Container)
		return s, nil, err
	}
	s.Left = nil
	s.leadPorts()
	m.sandboxes[s.Container] = s
	return s, reserved, nil
}

// Revert forgets a change that With or Without gave and nobody stored.
func (m *Manager) Revert(from, to Sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range to.Endpoints {
		if !slices.ContainsFunc(from.Endpoints, func(o Endpoint) bool { return o.ID == e.ID }) {
			m.forgetEndpoint(e)
		}
	}
	m.ports.drop(to.Ports[min(len(from.Ports), len(to.Ports)):], to.Container)
	m.sandboxes[from.Container] = from
}

// joinable: m.mu is held.
func (m *Manager) joinable(s Sandbox, n *object) error {
	if s.Shared || s.Netns == "" {
		return forbidden("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	if err := n.usable(); err != nil {
		return err
	}
	switch n.Driver {
	case driverHost:
		return forbidden("container cannot be connected to host network: create it with --network host")
	case driverNull:
		return forbidden("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	if slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.NetworkID == n.ID }) {
		return forbidden("endpoint with name %s already exists in network %s", s.Container[:min(12, len(s.Container))], n.Name)
	}
	return nil
}

// Without takes the endpoint on a network out of a container's sandbox. Errors:
// ErrNotFound, ErrPermissionDenied (the host's network).
func (m *Manager) Without(s Sandbox, ref string) (Sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(s.Endpoints, func(e Endpoint) bool { return e.Network == ref || e.NetworkID == ref })
	if i < 0 {
		n, err := m.lookup(ref)
		if err != nil {
			return s, err
		}
		if i = slices.IndexFunc(s.Endpoints, func(e Endpoint) bool { return e.NetworkID == n.ID }); i < 0 {
			return s, forbidden("container %s is not connected to network %s", s.Container, n.Name)
		}
	}
	if s.Endpoints[i].Network == network.NetworkHost {
		return s, forbidden("container cannot be disconnected from host network")
	}
	left := s.Endpoints[i]
	s.Left = &left
	s.Endpoints = slices.Delete(slices.Clone(s.Endpoints), i, i+1)
	s.leadPorts()
	m.sandboxes[s.Container] = s
	return s, nil
}

// Change makes the kernel's side of a running container go from one sandbox to
// the next: interfaces that are no more, then those that are new, routes, and
// where published ports lead.
func (m *Manager) Change(ctx context.Context, from, to Sandbox) error {
	var errs []error
	ports, err := bridge.Ports()
	if err != nil {
		return err
	}
	for _, e := range from.Endpoints {
		if slices.ContainsFunc(to.Endpoints, func(o Endpoint) bool { return o.ID == e.ID }) {
			continue
		}
		if p, there := ports[e.HostName]; there {
			errs = append(errs, bridge.RemovePort(p))
		}
		if e.Link != nil {
			errs = append(errs, bridge.RemoveInside(to.Netns, e.Name))
		}
		m.mu.Lock()
		m.forgetEndpoint(e)
		m.mu.Unlock()
	}
	errs = append(errs, m.Join(ctx, to))
	var gone []nft.Element
	keep := m.opts.elements(to)
	for _, e := range m.opts.elements(from) {
		if !slices.Contains(keep, e) {
			gone = append(gone, e)
		}
	}
	if len(gone) > 0 {
		errs = append(errs, m.delete(gone))
	}
	errs = append(errs, m.Publish(ctx, to))
	return errors.Join(errs...)
}

// Check reports whether a container that does not run may be connected.
func (m *Manager) Check(ref string, es *network.EndpointSettings) (network.Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup(ref)
	if err != nil {
		return network.Network{}, err
	}
	if err := n.usable(); err != nil {
		return n.api(), err
	}
	switch n.Driver {
	case driverHost:
		return n.api(), forbidden("container cannot be connected to host network: create it with --network host")
	case driverNull:
		return n.api(), forbidden("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	if err := judgeAsked(n.Name, es); err != nil {
		return n.api(), err
	}
	return n.api(), n.judge(es)
}

// Network describes a network without its containers.
func (m *Manager) Network(ref string) (network.Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup(ref)
	if err != nil {
		return network.Network{}, err
	}
	return n.api(), nil
}
