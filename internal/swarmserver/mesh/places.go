// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	gogotypes "github.com/gogo/protobuf/types"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/manager/allocator/networkallocator"

	"holdfast/internal/failpoint"
	"holdfast/internal/network/overlay"
)

// place is a task of this node on its overlay networks.
type place struct {
	task   string
	record endpointRecord // without the addresses
	at     []attachment
	in     Inside
	phase  phase
	left   time.Time // when the container had ended, or zero
}

// Inside is what a container has of its networks.
type Inside struct {
	// Netns is the file of its network namespace. Empty: it has not started.
	Netns string
	// Names are those of its interfaces, by network.
	Names map[string]string
	// Aliases are other names of the container.
	Aliases []string
}

// phase is the state of a task as other nodes see it.
type phase int

const (
	joined  phase = iota // it has an address, and can't be used yet
	serving              // it is started and healthy
	ending               // it gets no new connections
)

// attachment is a place on one network.
type attachment struct {
	network string
	address netip.Prefix
	vip     string
	aliases []string
	ports   []portRecord
}

// Overlays returns the attachments of a task to overlay networks: the networks of each
// host are no business of the mesh.
func Overlays(t *api.Task) (list []*api.NetworkAttachment) {
	for _, a := range t.Networks {
		n := a.Network
		if n == nil || len(a.Addresses) == 0 || n.Spec.Annotations.Labels[networkallocator.PredefinedLabel] == "true" {
			continue
		}
		list = append(list, a)
	}
	return list
}

// optVNIs is the option in which the allocator stores the VNIs of a network.
const optVNIs = "com.docker.network.driver.overlay.vxlanid_list"

// optMTU is the option with the MTU of a network, in bytes.
const optMTU = "com.docker.network.driver.mtu"

// define describes a network of the cluster.
func define(n *api.Network, port uint16) (d overlay.Definition, err error) {
	fail := func(err error) (overlay.Definition, error) {
		return d, fmt.Errorf("network %s: %w", n.Spec.Annotations.Name, err)
	}
	d = overlay.Definition{
		Network: overlay.Network{ID: n.ID, Port: port}, Name: n.Spec.Annotations.Name, Internal: n.Spec.Internal, Attachable: n.Spec.Attachable,
		Ingress: networkallocator.IsIngressNetwork(n), Labels: maps.Clone(n.Spec.Annotations.Labels),
	}
	if n.Meta.CreatedAt != nil {
		if d.Created, err = gogotypes.TimestampFromProto(n.Meta.CreatedAt); err != nil {
			return fail(err)
		}
	}
	if n.DriverState == nil || n.IPAM == nil {
		return fail(fmt.Errorf("the manager has not given it addresses yet"))
	}
	d.Options = maps.Clone(n.DriverState.Options)
	if v := d.Options[optMTU]; v != "" {
		if d.MTU, err = strconv.Atoi(v); err != nil {
			return fail(err)
		}
	}
	vnis := strings.Split(d.Options[optVNIs], ",")
	for i, c := range n.IPAM.Configs {
		if c.Family == api.IPAMConfig_IPV6 {
			continue
		}
		s := overlay.Subnet{}
		if s.Prefix, err = netip.ParsePrefix(c.Subnet); err != nil {
			return fail(err)
		}
		if s.Gateway, err = parseAddr(c.Gateway); err != nil {
			return fail(err)
		}
		if i >= len(vnis) {
			return fail(fmt.Errorf("it has %d subnets and %d VNIs", len(n.IPAM.Configs), len(vnis)))
		}
		vni, err := strconv.ParseUint(vnis[i], 10, 24)
		if err != nil {
			return fail(err)
		}
		s.VNI, s.Prefix = uint32(vni), s.Prefix.Masked()
		d.Subnets = append(d.Subnets, s)
	}
	if err := d.Check(); err != nil {
		return fail(err)
	}
	return d, nil
}

// placeOf describes a task. name is that of its container.
func placeOf(t *api.Task, name string) (*place, error) {
	p := &place{task: t.ID, record: endpointRecord{Name: name, Service: t.ServiceAnnotations.Name, ServiceID: t.ServiceID}}
	for _, a := range Overlays(t) {
		at := attachment{network: a.Network.ID, aliases: a.Aliases}
		var err error
		if at.address, err = netip.ParsePrefix(a.Addresses[0]); err != nil {
			return nil, fmt.Errorf("the address of task %s: %w", t.ID, err)
		}
		if t.Endpoint != nil {
			if networkallocator.IsIngressNetwork(a.Network) {
				at.ports = meshPorts(t.Endpoint.Ports)
			}
			for _, v := range t.Endpoint.VirtualIPs {
				if vip, err := parseAddr(v.Addr); v.NetworkID == a.Network.ID && err == nil {
					at.vip = vip.String()
				}
			}
		}
		p.at = append(p.at, at)
	}
	return p, nil
}

// meshPorts are the ports that the routing mesh publishes.
func meshPorts(all []*api.PortConfig) (ports []portRecord) {
	for _, p := range all {
		if p.PublishMode == api.PublishModeIngress && p.PublishedPort != 0 {
			ports = append(ports, portRecord{Name: p.Name, Protocol: uint32(p.Protocol), Target: p.TargetPort, Published: p.PublishedPort})
		}
	}
	return ports
}

// Join gives a task its place: its networks are made known to the daemon and to other
// nodes. It waits for the daemon.
func (m *Mesh) Join(ctx context.Context, t *api.Task, name string) error {
	list := Overlays(t)
	if len(list) == 0 {
		return nil
	}
	outside := false
	for _, a := range list {
		d, err := m.learn(a.Network)
		if err != nil {
			return err
		}
		if err := m.o.Daemon.DefineOverlay(ctx, d); err != nil {
			return err
		}
		outside = outside || !d.Internal
	}
	if outside {
		if err := m.o.Daemon.EnsureGateway(ctx); err != nil {
			return err
		}
	}
	failpoint.Here("mesh.defined")
	if err := m.place(t, name); err != nil {
		return err
	}
	m.sync(ctx)
	return nil
}

// learn notes the definition of a network.
func (m *Mesh) learn(n *api.Network) (overlay.Definition, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := define(n, m.port)
	if err == nil {
		d.Names, d.Services = m.namesPath(d.ID), m.servicesPath(d.ID)
		m.nets[d.ID] = d
	}
	return d, err
}

// place enters a task that has no place yet.
func (m *Mesh) place(t *api.Task, name string) error {
	p, err := placeOf(t, name)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.places[t.ID] == nil {
		m.places[t.ID] = p
	}
	return nil
}

// Started records the container of a task that is not healthy yet. The container can use
// other services from now on; none of its own names lead to it.
func (m *Mesh) Started(ctx context.Context, t *api.Task, name string, in Inside) error {
	return m.advance(ctx, t, name, "", in, joined)
}

// Serve notes that a task is started and healthy. It may be called again, and in a
// later process.
func (m *Mesh) Serve(ctx context.Context, t *api.Task, name, container string, in Inside) error {
	return m.advance(ctx, t, name, container, in, serving)
}

func (m *Mesh) advance(ctx context.Context, t *api.Task, name, container string, in Inside, to phase) error {
	list := Overlays(t)
	if len(list) == 0 {
		return nil
	}
	for _, a := range list {
		if _, err := m.learn(a.Network); err != nil {
			return err
		}
	}
	if err := m.place(t, name); err != nil {
		return err
	}
	m.mu.Lock()
	p := m.places[t.ID]
	before := *p
	p.phase, p.in, p.record.Name = max(p.phase, to), in, name
	if container != "" {
		p.record.TaskAliases = append([]string{container[:min(12, len(container))]}, in.Aliases...)
	}
	same := reflect.DeepEqual(before, *p)
	m.mu.Unlock()
	if !same {
		m.sync(ctx)
	}
	return nil
}

// Rest notes that the container of a place does not run, or is not on the network: it is
// found under no name, and its address stays its own.
func (m *Mesh) Rest(t *api.Task) {
	if err := m.place(t, t.ID); err != nil {
		return // a task without a place
	}
	for _, a := range Overlays(t) {
		if _, err := m.learn(a.Network); err != nil {
			return
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.places[t.ID]
	if p.phase == serving || p.in.Netns != "" {
		p.phase, p.in = joined, Inside{}
		m.Kick()
	}
}

// Drain takes a task out of the names and virtual addresses, on all nodes, before it is
// stopped.
func (m *Mesh) Drain(ctx context.Context, task string) {
	m.mu.Lock()
	p := m.places[task]
	change := p != nil && p.phase == serving
	if change {
		p.phase = ending
	}
	m.mu.Unlock()
	if !change {
		return
	}
	m.sync(ctx)
	failpoint.Here("mesh.draining")
	if !m.alone() {
		select {
		case <-ctx.Done():
		case <-time.After(spread):
		}
	}
}

// Leave ends the place of a task whose container has ended. Its records are first marked
// as disabled, and deleted a moment later: other nodes take a record that is deleted
// without the mark for one of a node that no longer answers, and keep using it.
func (m *Mesh) Leave(t *api.Task) {
	if len(Overlays(t)) == 0 {
		return
	}
	m.forgetFormer(t)
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.places[t.ID]; p != nil && p.left.IsZero() {
		p.phase, p.left, p.in = ending, time.Now(), Inside{}
		m.Kick()
		time.AfterFunc(spread, m.Kick)
	}
}

// forgetFormer forgets what an earlier process has stored of a task.
func (m *Mesh) forgetFormer(t *api.Task) {
	tunnel := m.o.Where().tunnel()
	m.syncing.Lock()
	defer m.syncing.Unlock()
	for _, a := range Overlays(t) {
		addr, err := parseAddr(a.Addresses[0])
		if err != nil {
			continue
		}
		for key, s := range m.seen[a.Network.ID] {
			if at, err := parseAddr(s.member.Peer.EndpointIP); err == nil && at == addr && s.member.Peer.TunnelEndpointIP == tunnel {
				delete(m.seen[a.Network.ID], key)
			}
		}
	}
	m.Kick()
}

// alone reports whether no other node has to be told.
func (m *Mesh) alone() bool {
	m.syncing.Lock()
	defer m.syncing.Unlock()
	return m.gossip == nil && m.ending == nil || m.gossip != nil && len(m.gossip.met()) == 0
}

// incarnation distinguishes the records of this process from those of an earlier one,
// which vanish at some time of their own.
var incarnation = rand.Text()

// keyOf is the key of a place's records on a network.
func keyOf(task, network string) string {
	sum := sha256.Sum256([]byte(task + "/" + network + "/" + incarnation))
	return hex.EncodeToString(sum[:])
}

// members returns the endpoints of this node on a network, by key.
func (s snapshot) members(network string) map[string]member {
	all := map[string]member{}
	if s.entry.on && s.entry.network == network {
		all[keyOf("node", network)] = member{Peer: s.peer(s.entry.address)}
	}
	for _, p := range s.places {
		for _, a := range p.at {
			if a.network != network {
				continue
			}
			addr := a.address.Addr()
			mb := member{Peer: s.peer(a.address)}
			if p.phase != joined {
				mb.Endpoint = p.record
				mb.Endpoint.EndpointIP, mb.Endpoint.VirtualIP = addr.String(), a.vip
				mb.Endpoint.Aliases, mb.Endpoint.Ports = slices.Clone(a.aliases), a.ports
				mb.Endpoint.Disabled = p.phase == ending
			}
			all[keyOf(p.task, network)] = mb
		}
	}
	return all
}

// peer tells where an address of this node is.
func (s snapshot) peer(address netip.Prefix) peerRecord {
	return peerRecord{EndpointIP: address.String(), EndpointMAC: overlay.MACOf(address.Addr()).String(), TunnelEndpointIP: s.address.tunnel()}
}
