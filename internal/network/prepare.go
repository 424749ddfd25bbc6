// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
)

// Request describes the networking that a container asks for.
type Request struct {
	ID   string // of the container
	Name string // for messages
	// Mode is HostConfig.NetworkMode: default, bridge, host, none,
	// container:ID (resolved to the full ID) or a network's name or ID.
	Mode string
	// Endpoints are the requested settings for networks, by name.
	Endpoints map[string]*network.EndpointSettings
	// Only: the container is only on the networks of Endpoints, if there are any,
	// whatever the mode.
	Only bool
	// LegacyLinks are the IDs of containers that this one has a legacy link to.
	LegacyLinks  []string
	PortBindings network.PortMap
	Exposed      network.PortSet
	// PublishAll publishes each exposed port that has no binding.
	PublishAll bool
	// NoIPv6: the container's namespace has IPv6 switched off.
	NoIPv6 bool
	// Last are the endpoints of the container's last run. It gets the same
	// addresses again if they are still free.
	Last []Endpoint
}

// Prepare allocates addresses and host ports for the container. The returned
// Reserved hold sockets that reserve the ports; the caller closes them. Nothing
// else is done in the kernel. A Sandbox of an earlier run of the container is
// released first.
//
// Errors: ErrNotFound (no such network or container), ErrInvalidArgument,
// ErrResourceExhausted (no addresses left), ErrFailedPrecondition (container:ID
// does not run), ErrInternal (host ports in use). After an error nothing stays
// allocated.
func (m *Manager) Prepare(ctx context.Context, r Request) (Sandbox, []Reserved, error) {
	if old, again := m.findSandbox(r.ID); again {
		if err := m.Release(ctx, old); err != nil {
			return Sandbox{}, nil, err
		}
	}
	return m.allocateSandbox(r)
}

// allocation makes the sandbox that a request asks for. It allocates in the
// inventory, so only methods of registry use it.
type allocation struct {
	inv *inventory
	r   Request
	// s has what is allocated so far, also after an error.
	s Sandbox
	// reserved are the sockets of the host ports that were reserved.
	reserved []Reserved
}

func newAllocation(inv *inventory, r Request) *allocation {
	a := &allocation{inv: inv, r: r, s: Sandbox{Schema: SandboxSchema, ID: randomID(), Container: r.ID, Mode: r.Mode, LegacyLinks: r.LegacyLinks}}
	for p := range r.Exposed {
		a.s.Exposed = append(a.s.Exposed, p)
	}
	for p := range r.PortBindings {
		if _, ok := r.Exposed[p]; !ok {
			a.s.Exposed = append(a.s.Exposed, p)
		}
	}
	sortPorts(a.s.Exposed)
	if a.s.Mode == "" || a.s.Mode == network.NetworkDefault {
		a.s.Mode = network.NetworkBridge
	}
	return a
}

// prepare allocates all that the request asks for.
func (a *allocation) prepare() error {
	if id, ok := strings.CutPrefix(a.s.Mode, "container:"); ok {
		other, ok := a.inv.sandboxes[id]
		if !ok {
			return errs.Unmet("cannot join network of a non running container: %s", id)
		}
		a.s.Netns, a.s.Shared = other.Netns, true
		return nil
	}
	n, err := a.inv.firstNetwork(a.s.Mode, a.r)
	if err != nil {
		return err
	}
	if n != nil && n.ConfigOnly {
		return n.usable()
	}
	if n != nil && (n.Driver == driverHost || n.Driver == driverNull) {
		a.connectPlain(n, a.inv.settingsFor(a.r, n))
		if n.Driver == driverNull {
			a.s.Netns = a.inv.opts.netnsPath(a.r.ID)
		}
		return nil
	}
	a.s.Netns = a.inv.opts.netnsPath(a.r.ID)
	if n != nil {
		if err := a.connect(n, a.inv.settingsFor(a.r, n)); err != nil {
			return err
		}
	}
	if err := a.connectRequested(); err != nil {
		return err
	}
	if err := a.publish(); err != nil {
		return prefixed(fmt.Sprintf("driver failed programming external connectivity on endpoint %s (%s): ", a.r.Name, a.s.Endpoints[0].ID), err)
	}
	return nil
}

// connectRequested connects the container to the networks that the request names,
// except that of its mode, which comes first.
func (a *allocation) connectRequested() error {
	for _, name := range slices.Sorted(maps.Keys(a.r.Endpoints)) {
		settings := a.r.Endpoints[name]
		name = canonical(name)
		if name == network.NetworkBridge && a.inv.opts.BridgeName == "none" {
			continue
		}
		n, err := a.inv.lookup(name)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(a.s.Endpoints, func(e Endpoint) bool { return e.NetworkID == n.ID }) {
			continue // the mode's network, which is connected already
		}
		if err := n.usable(); err != nil {
			return err
		}
		if n.Driver == driverNull && len(a.r.Endpoints) == 1 && a.r.Only {
			a.connectPlain(n, settings.Copy())
			continue
		}
		if n.Driver == driverHost || n.Driver == driverNull {
			return combinationError(n.Name)
		}
		if err := a.connect(n, settings.Copy()); err != nil {
			return err
		}
	}
	return nil
}

// connectPlain adds an endpoint that has neither interface nor addresses.
func (a *allocation) connectPlain(n *object, es *network.EndpointSettings) {
	a.s.Endpoints = append(a.s.Endpoints, Endpoint{ID: randomID(), Network: n.Name, NetworkID: n.ID, Settings: es})
}

// connect allocates an endpoint and adds it to the sandbox.
func (a *allocation) connect(n *object, es *network.EndpointSettings) error {
	e, err := a.endpoint(n, es)
	if err != nil {
		a.inv.forgetEndpoint(e)
		return err
	}
	a.s.Endpoints = append(a.s.Endpoints, e)
	return nil
}

// firstNetwork returns a container's first network, which is that of its mode, or nil if
// the container does not ask for it.
func (v *inventory) firstNetwork(mode string, r Request) (*object, error) {
	if mode == network.NetworkBridge && v.opts.BridgeName == "none" {
		// As in Docker, the container only has its loopback interface.
		return nil, nil
	}
	n, err := v.lookup(mode)
	if !r.Only || len(r.Endpoints) == 0 {
		return n, err
	}
	if err != nil {
		return nil, nil // the network is not requested, or its lookup below reports the error
	}
	for name := range r.Endpoints {
		if other, err := v.lookup(canonical(name)); err == nil && other.ID == n.ID {
			return n, nil
		}
	}
	return nil, nil
}

// canonical replaces "" and "default" by the default network's name.
func canonical(name string) string {
	if name == "" || name == network.NetworkDefault {
		return network.NetworkBridge
	}
	return name
}

// settingsFor returns the settings that a request has for a network, whether it
// names it by ID, name or mode.
func (v *inventory) settingsFor(r Request, n *object) *network.EndpointSettings {
	for _, key := range append([]string{n.ID, n.Name, r.Mode}, slices.Sorted(maps.Keys(r.Endpoints))...) {
		if other, err := v.lookup(canonical(key)); err == nil && other.ID == n.ID && r.Endpoints[key] != nil {
			return r.Endpoints[key].Copy()
		}
	}
	return nil
}

// prefixed puts text before an error's message and keeps its kind.
func prefixed(words string, err error) error { return &wordedError{words, err} }

type wordedError struct {
	words string
	err   error
}

func (e *wordedError) Error() string { return e.words + e.err.Error() }
func (e *wordedError) Unwrap() error { return e.err }
