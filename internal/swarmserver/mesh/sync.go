// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/swarmkit/v2/log"

	"holdfast/internal/failpoint"
	"holdfast/internal/network/overlay"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/internal/network/swarmlb"
	lbkernel "holdfast/internal/network/swarmlb/kernel"
)

// sighting is an endpoint of another node.
type sighting struct {
	member member
	// live reports whether the gossip has the endpoint now. Otherwise last is when the
	// gossip had it last.
	live bool
	last time.Time
}

func notFound(err error) bool { return errdefs.IsNotFound(err) }

// sync compares what should be with what is, and changes what differs. What fails is
// tried again with the next comparison.
func (m *Mesh) sync(ctx context.Context) {
	m.syncing.Lock()
	defer m.syncing.Unlock()
	s := m.snapshot()
	m.again = false
	m.keepGossip(s)
	m.keepEntry(ctx, &s)
	all := map[string][]member{} // by network
	complete := m.gossip != nil && m.gossip.synchronised(s.address.Remotes)
	for id := range s.nets {
		members, err := m.syncNetwork(s, id, complete)
		if err != nil {
			log.G(ctx).Errorf("network %s: %v", s.nets[id].Name, err)
		}
		all[id] = members
	}
	m.members = all
	for _, p := range s.places {
		if p.in.Netns == "" {
			continue
		}
		if err := m.applyServices(p, s.nets, all); err != nil {
			log.G(ctx).Errorf("virtual addresses of task %s: %v", p.task, err)
		}
	}
	maps.DeleteFunc(m.behind, func(task string, _ []swarmlb.Service) bool {
		return !slices.ContainsFunc(s.places, func(p place) bool { return p.task == task && p.in.Netns != "" })
	})
	if err := m.publishPorts(s, all[s.entry.network]); err != nil {
		log.G(ctx).Errorf("published ports: %v", err)
	}
	m.removeUnused(ctx, s)
}

// keepGossip begins the gossip when that is possible, and follows changes.
func (m *Mesh) keepGossip(s snapshot) {
	if g := m.gossip; g != nil {
		if s.address.Listen != g.address.Listen || s.address.Advertise != g.address.Advertise {
			m.endGossip()
		} else if why := g.ill(); why != "" && m.renewal.due(time.Now()) {
			log.L.Warnf("the gossip with other nodes begins anew: %s", why)
			m.endGossip()
		}
	}
	if m.ending != nil {
		select {
		case <-m.ending:
			m.ending = nil
		default:
			return // the port is in use
		}
	}
	if s.address.Advertise == "" || len(s.keys) == 0 {
		return
	}
	if m.gossip == nil && time.Since(m.failed) > startEach {
		g, err := startGossip(s.address, s.keys, m.Kick)
		if err != nil {
			if m.failed.IsZero() {
				log.L.Errorf("other nodes are not told of this node's tasks, and it is tried again: %v", err)
			}
			m.failed = time.Now()
			return
		}
		m.gossip, m.failed = g, time.Time{}
	}
	if m.gossip != nil {
		m.gossip.setKeys(s.keys)
		m.gossip.join(known(s.address, m.seen), m.Kick)
	}
}

// endGossip leaves the gossip. It does not wait for the other nodes to hear of it, which may
// take seconds.
func (m *Mesh) endGossip() {
	g, ended := m.gossip, make(chan struct{})
	m.gossip, m.ending = nil, ended
	go func() {
		g.close()
		close(ended)
		m.Kick()
	}()
}

// renewal spaces attempts to begin the gossip anew.
type renewal struct {
	last  time.Time
	pause time.Duration
}

const (
	// renewEach and renewRarely bound the time between two attempts.
	renewEach   = 30 * time.Second
	renewRarely = 10 * time.Minute
)

// due reports whether it is time for another attempt, and notes that it begins.
func (r *renewal) due(now time.Time) bool {
	since := now.Sub(r.last)
	switch {
	case since > 2*renewRarely:
		r.pause = renewEach
	case since < r.pause:
		return false
	default:
		r.pause = min(2*r.pause, renewRarely)
	}
	r.last = now
	return true
}

// known are the addresses at which other nodes may be: those of managers, and those where
// endpoints were. A manager that is the only one knows no other managers, and other nodes
// take some time to notice that it was started again.
func known(a Address, networks map[string]map[string]*sighting) []string {
	all := slices.Clone(a.Remotes)
	for _, seen := range networks {
		for _, s := range seen {
			if at := s.member.Peer.TunnelEndpointIP; at != "" && at != a.tunnel() && !slices.Contains(all, at) {
				all = append(all, at)
			}
		}
	}
	return all
}

// syncNetwork tells other nodes of this node's endpoints on a network, sets the tables
// of the kernel, and writes the files. It returns all endpoints on the network.
func (m *Mesh) syncNetwork(s snapshot, id string, complete bool) ([]member, error) {
	d, own := s.nets[id], s.members(id)
	var failed []error
	if m.gossip != nil {
		records := map[string][]byte{}
		for key, mb := range own {
			records[joinKey(peerTable, key)] = mb.Peer.encode()
			if mb.Endpoint.Name != "" {
				records[joinKey(endpointTable, key)] = mb.Endpoint.encode()
			}
		}
		done, err := m.gossip.publish(id, records)
		m.again = m.again || !done
		failed = append(failed, err)
		m.look(s, id, m.gossip.remote(id), complete)
	}
	local := map[string]bool{}
	for _, mb := range own {
		if a, err := parseAddr(mb.Peer.EndpointIP); err == nil {
			local[a.String()] = true
		}
	}
	remote := m.remembered(id, local, s.formerTunnel())
	if len(own) > 0 {
		if _, err := m.o.Host.SetPeers(d.Network, peersOf(remote, local, s.address.tunnel()), complete); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	members := remote
	for _, key := range slices.Sorted(maps.Keys(own)) {
		members = append(members, own[key])
	}
	failed = append(failed,
		m.write(m.namesPath(id), namesOf(d, members), 0o600),
		m.write(m.servicesPath(id), servicesOf(members, serve), 0o600),
		m.write(filepath.Join(m.stateDir(), id+".json"), stored{Schema: 1, Definition: d, Members: m.memory(id, own)}, 0o600))
	return members, errors.Join(failed...)
}

// look notes what the gossip knows of other nodes now.
func (m *Mesh) look(s snapshot, id string, now map[string]member, complete bool) {
	seen := m.seen[id]
	if seen == nil {
		seen = map[string]*sighting{}
		m.seen[id] = seen
	}
	at := time.Now()
	taken := map[netip.Addr]bool{}
	for key, mb := range now {
		seen[key] = &sighting{member: mb, live: true, last: at}
		if addr, err := parseAddr(mb.Peer.EndpointIP); err == nil {
			taken[addr] = true
		}
	}
	lost := map[netip.Addr]string{}
	for key, s := range seen {
		if _, live := now[key]; live {
			continue
		}
		s.live = false
		if !complete {
			s.last = at // the records are incomplete, so that absence proves nothing
		}
		switch addr, err := parseAddr(s.member.Peer.EndpointIP); {
		case s.member.Endpoint.Disabled:
			delete(seen, key)
		case at.Sub(s.last) <= linger:
		case err != nil, taken[addr]: // by a later incarnation
			delete(seen, key)
		default:
			lost[addr] = key
		}
	}
	if len(lost) == 0 {
		return
	}
	alive := s.alive(id, slices.Collect(maps.Keys(lost)))
	for addr, key := range lost {
		if alive[addr] {
			seen[key].last = at.Add(askAgain - linger)
		} else {
			delete(seen, key)
		}
	}
}

// alive asks, through the network itself, which endpoints of nodes that have vanished from
// the gossip are still there: a node whose processes are dead has its tasks. What can't be
// asked counts as dead.
func (s snapshot) alive(id string, addrs []netip.Addr) map[netip.Addr]bool {
	probe := kernel.Probe{}
	if e := s.entry; e.network == id && e.on {
		probe = kernel.Probe{From: e.address.Addr(), Mark: swarmlb.Mark}
	}
	for _, p := range s.places {
		for _, a := range p.at {
			if a.network == id && p.in.Netns != "" && !s.nets[id].Ingress {
				probe = kernel.Probe{Netns: p.in.Netns, From: a.address.Addr()}
			}
		}
	}
	if !probe.From.IsValid() {
		return nil // nothing here uses the network
	}
	alive, err := probe.Alive(addrs, askWithin)
	if err != nil {
		log.L.Warnf("network %s: which endpoints of other nodes are there: %v", s.nets[id].Name, err)
	}
	return alive
}

// remembered returns the endpoints of other nodes on a network. One that is heard of
// now takes the place of one that lingers and has the same address. Endpoints behind
// the tunnel former, if it is not empty, are left out.
func (m *Mesh) remembered(id string, local map[string]bool, former string) (members []member) {
	taken := map[string]bool{}
	maps.Copy(taken, local)
	seen := m.seen[id]
	for _, live := range []bool{true, false} {
		for _, key := range slices.Sorted(maps.Keys(seen)) {
			s := seen[key]
			if s.live != live || former != "" && s.member.Peer.TunnelEndpointIP == former {
				continue
			}
			addr, err := parseAddr(s.member.Peer.EndpointIP)
			if err != nil {
				addr, err = parseAddr(s.member.Endpoint.EndpointIP)
			}
			if err != nil || taken[addr.String()] {
				continue
			}
			taken[addr.String()] = true
			members = append(members, s.member)
		}
	}
	return members
}

// formerTunnel is this node's own tunnel once its tasks are known: what is remembered
// behind it is of tasks that have ended. Before that, the endpoints of its tasks are
// known from an earlier process only.
func (s snapshot) formerTunnel() string {
	if s.settled {
		return s.address.tunnel()
	}
	return ""
}

// memory is what is stored of all nodes, for the next process. It does not know this
// node's own tasks at its start.
func (m *Mesh) memory(id string, own map[string]member) map[string]member {
	all := maps.Clone(own)
	for key, s := range m.seen[id] {
		all[key] = s.member
	}
	return all
}

// applyServices sets the rules of a task for the virtual addresses on its networks, and
// ends the task's connections to what is gone.
func (m *Mesh) applyServices(p place, nets map[string]overlay.Definition, all map[string][]member) error {
	var t swarmlb.Task
	var behind []swarmlb.Service
	for _, a := range p.at {
		if nets[a.network].Ingress {
			t.Ingress, t.Address = p.in.Names[a.network], a.address.Addr()
			t.Entries = entriesOf(all[a.network], t.Address)
			continue
		}
		t.Services = append(t.Services, servicesOf(all[a.network], serve)...)
		behind = append(behind, servicesOf(all[a.network], keep)...)
	}
	changed, err := lbkernel.Apply(p.in.Netns, t)
	if changed {
		failpoint.Here("mesh.applied")
	}
	// A process that starts does not know what an earlier one had not finished.
	before, known := m.behind[p.task]
	if err == nil && (!known || !reflect.DeepEqual(before, behind)) {
		_, err = lbkernel.Forget(p.in.Netns, swarmlb.Task{Services: withRemoved(slices.Clone(behind), before)})
		if err == nil {
			m.behind[p.task] = behind
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // its container has just ended
	}
	return err
}

// removeUnused removes networks that no task of this node was on for some time.
func (m *Mesh) removeUnused(ctx context.Context, s snapshot) {
	used := map[string]bool{}
	for _, p := range s.places {
		for _, a := range p.at {
			used[a.network] = true
		}
	}
	if s.entry.network != "" {
		used[s.entry.network] = true
	}
	for id := range s.nets {
		since, idle := m.idle[id]
		switch {
		case used[id] || !s.settled:
			delete(m.idle, id)
		case !idle:
			m.idle[id] = time.Now()
		case time.Since(since) > unused:
			// With a container on it, or without a daemon, it is tried again.
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			if err := m.forget(ctx, id); err != nil {
				log.G(ctx).Debugf("%v", err)
				m.idle[id] = time.Now()
			}
			cancel()
		}
	}
}
