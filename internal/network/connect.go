// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/network/bridge"
	"holdfast/internal/network/nft"
)

// Connecting or disconnecting a running container takes the same steps as a
// start: AddEndpoint or RemoveEndpoint returns the new Sandbox, in memory; the
// engine stores it; ApplySandbox makes the kernel agree, and may be repeated
// after a crash.

// retargetPorts points the published ports to the container's addresses on the
// networks of its default routes, because replies leave by those. Without such an
// address a port stays reserved and has no target.
func (s *Sandbox) retargetPorts() {
	s.Moved, s.Applying = true, true
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

// AddEndpoint adds an endpoint on a network to a container's sandbox. Errors:
// ErrNotFound, ErrPermissionDenied (it is on that network, or can't be on
// several), ErrInvalidArgument, ErrResourceExhausted, ErrInternal (host ports in
// use).
//
// A container that had no network with a gateway publishes its ports now. One
// that had no IPv4 address now publishes on the host's IPv4 addresses too. The
// caller closes the sockets that reserve these ports.
func (reg *registry) AddEndpoint(s Sandbox, r Request, ref string, es *network.EndpointSettings) (Sandbox, []Reserved, error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n, err := reg.inv.lookup(ref)
	if err != nil {
		return s, nil, err
	}
	if err := joinable(s, n); err != nil {
		return s, nil, err
	}
	a := &allocation{inv: &reg.inv, r: r, s: s}
	a.s.Endpoints, a.s.Ports = slices.Clone(s.Endpoints), slices.Clone(s.Ports)
	// On the network none a container only has its loopback interface, so that
	// endpoint goes.
	a.s.Endpoints = slices.DeleteFunc(a.s.Endpoints, func(e Endpoint) bool { return e.Network == network.NetworkNone })
	if err := a.connect(n, es.Copy()); err != nil {
		return s, nil, err
	}
	publish := a.publishMore
	if len(s.Ports) == 0 {
		publish = a.publish
	}
	if err := publish(); err != nil {
		reg.inv.forgetEndpoint(a.s.Endpoints[len(a.s.Endpoints)-1])
		reg.inv.ports.drop(a.s.Ports[len(s.Ports):], s.Container)
		return s, nil, err
	}
	a.s.Left = nil
	a.s.retargetPorts()
	reg.inv.sandboxes[s.Container] = a.s
	return a.s, a.reserved, nil
}

// Revert forgets a sandbox that AddEndpoint or RemoveEndpoint returned and that
// was not stored or not applied.
func (reg *registry) Revert(from, to Sandbox) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	for _, e := range to.Endpoints {
		if !slices.ContainsFunc(from.Endpoints, func(o Endpoint) bool { return o.ID == e.ID }) {
			reg.inv.forgetEndpoint(e)
		}
	}
	reg.inv.ports.drop(to.Ports[min(len(from.Ports), len(to.Ports)):], to.Container)
	reg.inv.sandboxes[from.Container] = from
}

// joinable checks whether a running container can be added to the network.
func joinable(s Sandbox, n *object) error {
	if s.Shared || s.Netns == "" {
		return errs.Forbidden("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	if err := n.usable(); err != nil {
		return err
	}
	switch n.Driver {
	case driverHost:
		return errs.Forbidden("cannot connect container to host network - container must be created in host network mode")
	case driverNull:
		return errs.Forbidden("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	if slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.NetworkID == n.ID }) {
		return errs.Forbidden("endpoint with name %s already exists in network %s", s.Container[:min(12, len(s.Container))], n.Name)
	}
	return nil
}

// RemoveEndpoint removes the endpoint on a network from a container's sandbox.
// Errors: ErrNotFound, ErrPermissionDenied (the host's network).
func (reg *registry) RemoveEndpoint(s Sandbox, ref string) (Sandbox, error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	var i int
	if n, err := reg.inv.lookup(ref); err == nil {
		if i = slices.IndexFunc(s.Endpoints, func(e Endpoint) bool { return e.NetworkID == n.ID }); i < 0 {
			return s, errs.Forbidden("container %s is not connected to the network %s", s.Container, n.Name)
		}
	} else if i = slices.IndexFunc(s.Endpoints, func(e Endpoint) bool { return e.NetworkID == ref || e.Network == ref }); i < 0 {
		return s, err // the network may be deleted while the sandbox still names it
	}
	if s.Endpoints[i].Network == network.NetworkHost {
		return s, errs.Forbidden("cannot disconnect container from host network - container was created in host network mode")
	}
	left := s.Endpoints[i]
	s.Left = &left
	s.Endpoints = slices.Delete(slices.Clone(s.Endpoints), i, i+1)
	s.retargetPorts()
	reg.inv.sandboxes[s.Container] = s
	return s, nil
}

// ApplySandbox changes a running container's network in the kernel from one
// sandbox to the next. It removes the interfaces that to no longer has, adds the
// new ones, and sets routes and the targets of published ports. It is idempotent.
func (m *Manager) ApplySandbox(ctx context.Context, from, to Sandbox) error {
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
		if e.Parent != nil {
			errs = append(errs, bridge.RemoveInside(to.Netns, e.Name))
		}
		if e.Overlay {
			errs = append(errs, m.opts.overlays().RemoveEndpoint(e.NetworkID, e.ID))
		}
		m.forgetEndpoint(e)
	}
	failpoint.Here("network.unlinked")
	errs = append(errs, m.Join(ctx, to))
	var gone []nft.Element
	staying := m.opts.elements(to)
	for _, e := range m.opts.elements(from) {
		if !slices.Contains(staying, e) {
			gone = append(gone, e)
		}
	}
	if len(gone) > 0 {
		errs = append(errs, m.guard.table.delete(gone))
	}
	errs = append(errs, m.Publish(ctx, to))
	return errors.Join(errs...)
}

// CheckConnect reports whether a container that does not run may be connected.
func (reg *registry) CheckConnect(ref string, es *network.EndpointSettings) (network.Network, error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n, err := reg.inv.lookup(ref)
	if err != nil {
		return network.Network{}, err
	}
	if err := n.usable(); err != nil {
		return n.api(), err
	}
	switch n.Driver {
	case driverHost:
		return n.api(), errs.Forbidden("cannot connect container to host network - container must be created in host network mode")
	case driverNull:
		return n.api(), errs.Forbidden("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	if err := validateRequested(n.Name, es); err != nil {
		return n.api(), err
	}
	return n.api(), n.validate(es)
}

// Network describes a network without its containers.
func (reg *registry) Network(ref string) (network.Network, error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n, err := reg.inv.lookup(ref)
	if err != nil {
		return network.Network{}, err
	}
	return n.api(), nil
}
