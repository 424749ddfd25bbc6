// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"maps"
	"path/filepath"
	"time"

	"holdfast/internal/network/bridge"
)

// Endpoints show which data root owns a bridge. The host's end of each veth is
// marked with its data root, and so is a bridge that an engine made. Daemons with
// several data roots may share one bridge: neither removes the other's endpoints,
// nor the addresses that those need. A bridge that another data root made is
// taken over once no endpoint of that data root is on it and no daemon uses that
// data root.

// claimPatience bounds how long a start waits for other daemons that choose a
// subnet or are starting. A daemon that hangs must not keep this one from its
// containers.
const claimPatience = 5 * time.Second

// claimToStart is claim for a start. If the claim is not available in time, the
// start goes on without it.
func (p *parsed) claimToStart(ctx context.Context) (release func()) {
	ctx, cancel := context.WithTimeout(ctx, claimPatience)
	defer cancel()
	release, err := claim(ctx)
	if err != nil {
		p.Log.Warn("another daemon of this host holds the claim to network setup for too long, the start goes on without waiting for it", "error", err)
		return func() {}
	}
	return release
}

// ownership is this data root's relation to a bridge that is marked as another's.
type ownership struct {
	// guest: the other data root uses the bridge. Containers of it are on the
	// bridge, or its daemon runs.
	guest bool
	// abandoned: the other data root made the bridge and no longer uses it, so the
	// bridge may be taken over.
	abandoned bool
}

// checkBridgeOwner finds out which data root owns the default network's bridge.
// It changes nothing.
func (p *parsed) checkBridgeOwner(sandboxes map[string]Sandbox) (ownership, error) {
	if p.BridgeName == "none" {
		return ownership{}, nil
	}
	ports, err := bridge.Ports()
	if err != nil {
		return ownership{}, err
	}
	o, owner, err := p.ownership(p.BridgeName, ports, hostNames(sandboxes))
	switch {
	case o.guest:
		p.Log.Info("another data root uses the bridge, too: both share it", "bridge", p.BridgeName, "data-root", filepath.Dir(owner))
	case o.abandoned:
		p.Log.Info("the bridge of another data root that has no containers on it is taken over", "bridge", p.BridgeName, "data-root", filepath.Dir(owner))
	}
	return o, err
}

// ownership reports this data root's relation to a bridge. owner is the directory
// of the other data root's records. used are the host's ends of our own endpoints.
func (p *parsed) ownership(name string, ports map[string]bridge.Port, used map[string]bool) (o ownership, owner string, err error) {
	description, err := bridge.Description(name)
	if err != nil {
		return o, "", err
	}
	owner, foreign := bridge.Foreign(description, p.Root)
	if !foreign {
		return o, "", nil
	}
	o.guest = p.othersOn(name, ports, used) || p.Alive != nil && p.Alive(filepath.Dir(owner))
	o.abandoned = !o.guest
	return o, owner, nil
}

// considerate adapts a bridge's settings so that Ensure keeps what other data
// roots on the bridge need.
func (p *parsed) considerate(b bridge.Bridge, ports map[string]bridge.Port, used map[string]bool) (bridge.Bridge, error) {
	b.Tolerant = p.othersOn(b.Name, ports, used)
	o, _, err := p.ownership(b.Name, ports, used)
	b.Exact = b.Exact && !o.guest
	return b, err
}

// othersOn reports whether the bridge has endpoints of other data roots.
// Endpoints of releases that did not mark them count as others'.
func (p *parsed) othersOn(name string, ports map[string]bridge.Port, used map[string]bool) bool {
	for _, port := range ports {
		if port.Bridge == name && ourVeth.MatchString(port.Name) && !used[port.Name] && !bridge.Owned(port.Description, p.Root) {
			return true
		}
	}
	return false
}

// hostNames returns the host interface names of all endpoints.
func hostNames(sandboxes map[string]Sandbox) map[string]bool {
	used := map[string]bool{}
	for s := range maps.Values(sandboxes) {
		for _, e := range s.Endpoints {
			used[e.HostName] = true
		}
	}
	return used
}
