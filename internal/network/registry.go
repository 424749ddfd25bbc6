// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/filter"
	"holdfast/internal/network/nft"
)

// registry is what the engine intends: the networks, with their records and
// allocators, and the sandboxes of the containers that run, with their addresses
// and ports. It writes the records of networks. It changes nothing in the kernel
// but the sockets that reserve ports.
//
// Its lock is the last one that is taken: no method calls another type that has a
// lock. Each method leaves the registry as if it ran alone.
type registry struct {
	mu  sync.Mutex
	inv inventory
}

func newRegistry(opts *parsed, records map[string]*record) *registry {
	reg := &registry{inv: inventory{
		opts: opts, networks: map[string]*object{}, sandboxes: map[string]Sandbox{},
		published: map[string]bool{}, ports: newHostPorts(ephemeralRange()),
	}}
	// Start at a random port: daemons on one host then rarely ask for the same
	// ports, and a port that was free just before a daemon's end is not given to
	// another container at once.
	ports := reg.inv.ports
	ports.cursor = ports.first + uint16(rand.IntN(int(ports.last-ports.first)+1))
	for name, r := range records {
		reg.inv.networks[name] = &object{record: r}
	}
	return reg
}

// adoptSandboxes takes over the sandboxes of running containers, and defines the
// predefined networks. It returns the bridges that should exist.
func (reg *registry) adoptSandboxes(sandboxes map[string]Sandbox, o ownership) ([]wanted, error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	if err := reg.inv.adoptSandboxes(sandboxes, o); err != nil {
		return nil, err
	}
	return reg.inv.bridges(), nil
}

// definePredefined defines the predefined networks.
func (reg *registry) definePredefined(o ownership) error {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return reg.inv.definePredefined(o)
}

// unknown returns a container with an endpoint on a network that has no record.
func (reg *registry) unknown(sandboxes map[string]Sandbox) (container, network string, found bool) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	for id, s := range sandboxes {
		for _, e := range s.Endpoints {
			if reg.inv.networks[e.Network] == nil {
				return id, e.Network, true
			}
		}
	}
	return "", "", false
}

// networkOfBridge returns the name and the ID of the network that has a bridge, or
// "" if none has.
func (reg *registry) networkOfBridge(name string) (network, id string) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	for _, n := range reg.inv.networks {
		if n.Bridge != nil && n.Bridge.Name == name {
			network, id = n.Name, n.ID
		}
	}
	return network, id
}

// bridges returns the bridges that should exist.
func (reg *registry) bridges() []wanted {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return reg.inv.bridges()
}

// hasBridge reports whether an interface is a bridge that should exist.
func (reg *registry) hasBridge(name string) bool {
	return slices.ContainsFunc(reg.bridges(), func(b wanted) bool { return b.Name == name })
}

// bridgeOf returns the bridge of a network's record, or "" if it has none.
func (reg *registry) bridgeOf(network string) string {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	if n := reg.inv.networks[network]; n != nil && n.Bridge != nil {
		return n.Bridge.Name
	}
	return ""
}

// bridgeNames returns the bridges of all networks.
func (reg *registry) bridgeNames() (names []string) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	for _, n := range reg.inv.networks {
		if n.Bridge != nil {
			names = append(names, n.Bridge.Name)
		}
	}
	return names
}

// filtered returns the bridges that should exist, and which families need rules.
func (reg *registry) filtered() (bridges []wanted, families [2]bool) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return reg.inv.bridges(), reg.inv.families()
}

// onBridge reports whether any running container has an interface on a bridge.
func (reg *registry) onBridge() bool {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	for _, s := range reg.inv.sandboxes {
		if s.onBridge() {
			return true
		}
	}
	return false
}

// intent returns what interfaces should exist: the bridges, the sandboxes by
// container, and the parents, by network, that the engine made.
func (reg *registry) intent() (bridges []wanted, sandboxes map[string]Sandbox, parents map[string]string) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return reg.inv.bridges(), maps.Clone(reg.inv.sandboxes), reg.inv.madeParents()
}

// rules returns the input for the nftables table, without its name and without
// the rest.
func (reg *registry) rules() nft.Config {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return reg.inv.rules()
}

// findSandbox returns a container's sandbox.
func (reg *registry) findSandbox(container string) (s Sandbox, ok bool) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	s, ok = reg.inv.sandboxes[container]
	return s, ok
}

// allocateSandbox makes a container's sandbox, see Manager.Prepare.
func (reg *registry) allocateSandbox(r Request) (Sandbox, []Reserved, error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	a := newAllocation(&reg.inv, r)
	if err := a.prepare(); err != nil {
		reg.inv.forgetSandbox(a.s)
		return Sandbox{}, nil, err
	}
	reg.inv.sandboxes[r.ID] = a.s
	return a.s, a.reserved, nil
}

// updateSandbox replaces the sandbox of a run by a newer form of it.
func (reg *registry) updateSandbox(s Sandbox) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	if current, known := reg.inv.sandboxes[s.Container]; known && current.ID == s.ID {
		reg.inv.sandboxes[s.Container] = s
	}
}

// markPublished records that a sandbox's elements belong in the table. It reports
// whether legacy links of the container, or to it, need rules.
func (reg *registry) markPublished(s Sandbox) (needsRules bool) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.inv.published[s.Container] = true
	return reg.inv.hasLegacyLinks(s)
}

// isPublished reports whether the elements of a container belong in the table.
func (reg *registry) isPublished(container string) bool {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return reg.inv.published[container]
}

// markWithdrawn records that a sandbox's elements no longer belong in the table. known
// is false if the container has no sandbox, newer is true if it has another one:
// then nothing is done.
func (reg *registry) markWithdrawn(s Sandbox) (known, newer bool) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	current, known := reg.inv.sandboxes[s.Container]
	if known && current.ID != s.ID {
		return known, true
	}
	delete(reg.inv.published, s.Container)
	return known, false
}

// forgetSandbox releases what a sandbox has allocated. It reports whether the table had
// rules for the container's addresses alone.
func (reg *registry) forgetSandbox(s Sandbox) (special bool) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	special = reg.inv.excepted(s) || reg.inv.hasLegacyLinks(s)
	reg.inv.forgetSandbox(s)
	delete(reg.inv.sandboxes, s.Container)
	return special
}

// forgetEndpoint releases the addresses of an endpoint.
func (reg *registry) forgetEndpoint(e Endpoint) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.inv.forgetEndpoint(e)
}

// addNetwork adds a network, with its subnets and its bridge or parent, and stores its
// record. The caller sets it up in the kernel, and then calls done, for which
// condemnNetwork waits.
func (reg *registry) addNetwork(rec *record, asked *network.IPAM) (done func(), err error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	if other := reg.inv.networks[rec.Name]; other != nil {
		return nil, errs.Conflict("network with name %s already exists", rec.Name)
	}
	n := &object{record: rec, done: make(chan struct{})}
	if !rec.ConfigOnly {
		if err := reg.inv.assign(n, asked); err != nil {
			return nil, err
		}
	}
	// The record is written first. After a crash from here on Restore completes
	// the network, and it can be removed.
	if err := save(reg.inv.opts.Root, rec); err != nil {
		return nil, err
	}
	reg.inv.networks[rec.Name] = n
	return func() { close(n.done) }, nil
}

// condemnNetwork marks the record of a network for removal and forgets the network,
// unless it is in use; see Manager.Remove for the errors.
// ofSwarm: it is an overlay network, which only the process of the swarm removes.
// A network that is being set up is waited for, so that its removal undoes all of it.
func (reg *registry) condemnNetwork(ctx context.Context, ref string, ofSwarm bool) (*record, network.Network, error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n, err := reg.inv.lookup(ref)
	for err == nil && n.isBeingSetUp() {
		reg.mu.Unlock()
		select {
		case <-n.done:
		case <-ctx.Done():
		}
		reg.mu.Lock()
		if ctx.Err() != nil {
			return nil, network.Network{}, ctx.Err()
		}
		n, err = reg.inv.lookup(ref) // the name may be another network's by now
	}
	if err != nil {
		return nil, network.Network{}, err
	}
	api := n.api()
	if predefined(n.Name) {
		return nil, api, errs.Forbidden("%s is a pre-defined network and cannot be removed", n.Name)
	}
	switch {
	case ofSwarm && n.Overlay == nil:
		return nil, api, errs.NotFound("network %s not found", ref)
	case !ofSwarm && n.Overlay != nil:
		return nil, api, errs.Forbidden("network %s is a network of the swarm: it is removed on a manager", n.Name)
	}
	if users := reg.inv.users(n); len(users) > 0 {
		return nil, api, errs.Forbidden("error while removing network: network %s has active endpoints (%s)", n.Name, strings.Join(users, ", "))
	}
	if reg.inv.configures(n) {
		return nil, api, errs.Forbidden("error while removing network: configuration network %q is in use", n.Name)
	}
	return n.record, api, reg.inv.condemn(n.record)
}

// condemnRecord is condemnNetwork for a network that could not be set up.
func (reg *registry) condemnRecord(rec *record) error {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return reg.inv.condemn(rec)
}

// inherit is inventory.inherit.
func (reg *registry) inherit(rec *record) (used bool, err error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return reg.inv.inherit(rec)
}

// prunable returns the user-defined networks that match the filters, are not in
// use, and for which used returns false; see Manager.Prune.
func (reg *registry) prunable(args filter.Args, until time.Time, used func(id string) bool) (gone []*record) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(reg.inv.networks)) {
		n := reg.inv.networks[name]
		switch {
		case predefined(name), n.ConfigOnly, n.Overlay != nil, name == GatewayNetwork, len(reg.inv.users(n)) > 0, used(n.ID),
			!until.IsZero() && !n.Created.Before(until),
			!args.KV("label", n.Labels),
			args.Has("label!") && args.KV("label!", n.Labels):
		default:
			gone = append(gone, n.record)
		}
	}
	return gone
}
