// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"
	"github.com/moby/swarmkit/v2/manager/allocator/networkallocator"

	"holdfast/internal/failpoint"
	"holdfast/internal/network/overlay"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/internal/network/swarmlb"
	lbkernel "holdfast/internal/network/swarmlb/kernel"
)

// entry is this node as an entry to the ports that the routing mesh publishes.
type entry struct {
	network string // its ID, or empty: the cluster has no routing mesh
	address netip.Prefix
	// on: a port is published, so the node has its endpoint. A node of a swarm
	// without such ports has nothing of the mesh.
	on bool
}

// entryEndpoint is the ID of the host's endpoint; see network.OwnEndpoint.
const entryEndpoint = "host-ingress"

// SetNode gets what the cluster has stored of this node.
func (m *Mesh) SetNode(n *api.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.port = uint16(n.VXLANUDPPort)
	attachments := n.Attachments
	if n.Attachment != nil {
		attachments = append(attachments[:len(attachments):len(attachments)], n.Attachment)
	}
	next := entry{}
	for _, a := range attachments {
		if a == nil || a.Network == nil || len(a.Addresses) == 0 || !networkallocator.IsIngressNetwork(a.Network) {
			continue
		}
		address, err := netip.ParsePrefix(a.Addresses[0])
		d, derr := define(a.Network, m.port)
		if err != nil || derr != nil {
			log.L.Errorf("the routing mesh can't be used: %v %v", err, derr)
			continue
		}
		d.Names, d.Services = m.namesPath(d.ID), m.servicesPath(d.ID)
		m.nets[d.ID] = d
		next = entry{network: d.ID, address: address}
	}
	if next.network == m.entry.network && next.address == m.entry.address {
		next.on = m.entry.on
	}
	m.entry = next
	m.Kick()
}

// defineTimeout bounds how long a comparison waits for the daemon.
const defineTimeout = 2 * time.Second

// keepEntry makes this node an entry as soon as any node publishes a port.
func (m *Mesh) keepEntry(ctx context.Context, s *snapshot) {
	e := s.entry
	if e.network == "" || !e.on && !m.publishes(s) {
		return
	}
	d := s.nets[e.network]
	if !e.on {
		// The daemon takes a namespace without a definition for one that was left.
		ctx, cancel := context.WithTimeout(ctx, defineTimeout)
		defer cancel()
		if err := m.o.Daemon.DefineOverlay(ctx, d); err != nil {
			log.G(ctx).Errorf("the routing mesh has to wait for the daemon: %v", err)
			return
		}
	}
	if err := m.enter(d, e); err != nil {
		log.G(ctx).Errorf("this node can't be an entry to published ports: %v", err)
		return
	}
	s.entry.on = true
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entry.network == e.network {
		m.entry.on = true
	}
}

// enter makes the host's endpoint.
func (m *Mesh) enter(d overlay.Definition, e entry) error {
	if _, err := m.o.Host.Ensure(d.Network); err != nil {
		return err
	}
	return m.o.Host.AddEndpoint(d.Network, kernel.Endpoint{ID: entryEndpoint, Name: swarmlb.IngressInterface, Addr: e.address, MAC: overlay.MACOf(e.address.Addr())})
}

// publishes reports whether any node publishes a port by the routing mesh.
func (m *Mesh) publishes(s *snapshot) bool {
	for _, p := range s.places {
		for _, a := range p.at {
			if a.network == s.entry.network {
				return true
			}
		}
	}
	if m.gossip != nil {
		// Nodes without tasks are entries, too, so they have to listen.
		if !m.gossip.listen(s.entry.network) {
			m.again = true
		}
		for _, mb := range m.gossip.remote(s.entry.network) {
			if len(mb.Endpoint.Ports) > 0 {
				return true
			}
		}
	}
	for _, seen := range m.seen[s.entry.network] {
		if len(seen.member.Endpoint.Ports) > 0 {
			return true
		}
	}
	return false
}

// publishPorts makes the host translate published ports to tasks.
func (m *Mesh) publishPorts(s snapshot, members []member) error {
	if !s.entry.on {
		return nil
	}
	i := swarmlb.Ingress{Interface: swarmlb.IngressInterface, Addr: s.entry.address.Addr(), Subnet: s.entry.address.Masked(), Ports: portsOf(members, serve)}
	changed, err := lbkernel.ApplyIngress(i)
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if changed {
		failpoint.Here("mesh.published")
	}
	// As with the virtual addresses of tasks.
	behind := portsOf(members, keep)
	m.reserved.set(behind)
	if m.behindPorts != nil && reflect.DeepEqual(*m.behindPorts, behind) {
		return nil
	}
	i.Ports = slices.Clone(behind)
	if m.behindPorts != nil {
		i.Ports = withRemovedPorts(i.Ports, *m.behindPorts)
	}
	if _, err := lbkernel.ForgetIngress(i); err != nil {
		return err
	}
	m.behindPorts = &behind
	return nil
}

// endEntry takes back what the host has as an entry, also by an earlier process: as long as
// the host has an endpoint on a network, the network can't be removed.
func endEntry(host kernel.Host, networks []string) error {
	_, err := lbkernel.ApplyIngress(swarmlb.Ingress{})
	for _, id := range networks {
		err = errors.Join(err, host.RemoveEndpoint(id, entryEndpoint))
	}
	return err
}
