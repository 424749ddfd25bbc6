// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"holdfast/internal/errs"
	"holdfast/internal/network/bridge"
	"holdfast/internal/network/overlay"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/internal/network/swarmlb"
	lbkernel "holdfast/internal/network/swarmlb/kernel"
)

// driverOverlay is the driver of networks that span the nodes of a swarm. The process
// of the swarm defines them, gives addresses and keeps the tables of other nodes'
// endpoints; the daemon connects containers.
const driverOverlay = "overlay"

// GatewayNetwork is the network by which containers of overlay networks reach other
// hosts, and by which their published ports lead to them. Its name is Docker's.
const GatewayNetwork = "docker_gwbridge"

// OverlayDir is the folder of the namespaces of overlay networks in an exec root.
func OverlayDir(execRoot string) string { return filepath.Join(execRoot, "overlay") }

func (p *parsed) overlays() kernel.Host { return kernel.Host{Dir: OverlayDir(p.ExecRoot)} }

// onOverlay reports whether a container is on an overlay network.
func (s Sandbox) onOverlay() bool {
	return slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Overlay })
}

// DefineOverlay makes an overlay network of the swarm known on this host, or changes
// its definition, and makes its namespace. Errors: ErrConflict (another network has its
// name), ErrInvalidArgument.
func (m *Manager) DefineOverlay(_ context.Context, d overlay.Definition) error {
	if err := d.Check(); err != nil {
		return errs.Invalid("%v", err)
	}
	gone, err := m.putOverlay(d)
	if err != nil {
		return err
	}
	if gone != "" {
		// An earlier network of the same name, whose removal this host has missed.
		if err := m.opts.overlays().Remove(gone); err != nil {
			m.opts.Log.Warn("the namespace of a network that was replaced can't be removed", "network", d.Name, "id", gone, "error", err)
		}
	}
	_, err = m.opts.overlays().Ensure(d.Network)
	return err
}

// ForgetOverlay removes an overlay network from this host. Errors: ErrNotFound,
// ErrPermissionDenied (a container is on it).
func (m *Manager) ForgetOverlay(ctx context.Context, id string) error {
	rec, _, err := m.condemnNetwork(ctx, id, true)
	if err != nil {
		return err
	}
	return m.finishRemoval(ctx, rec)
}

// putOverlay stores the record of an overlay network. It returns the ID of a network
// that had the name before, if there was one.
func (reg *registry) putOverlay(d overlay.Definition) (gone string, err error) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	old := reg.inv.networks[d.Name]
	switch {
	case old == nil:
	case old.Overlay == nil:
		return "", errs.Conflict("network with name %s already exists on this host: remove it, or give the network of the swarm another name", d.Name)
	case old.ID != d.ID && reg.inv.inUse(old):
		return "", errs.Conflict("containers of this host are still on an earlier network with name %s", d.Name)
	case old.ID == d.ID && reflect.DeepEqual(*old.Overlay, d):
		return "", nil
	}
	n := &object{record: overlayRecord(d)}
	if old != nil && old.ID == d.ID {
		n.allocators = old.allocators // they know the addresses in use
	} else if err := n.makeAllocators(); err != nil {
		return "", err
	}
	if err := save(reg.inv.opts.Root, n.record); err != nil {
		return "", err
	}
	if old != nil && old.ID != d.ID {
		gone = old.ID
		if err := reg.inv.removeRecord(old); err != nil {
			return "", err
		}
	}
	reg.inv.networks[d.Name] = n
	return gone, nil
}

func overlayRecord(d overlay.Definition) *record {
	rec := &record{
		Schema: recordSchema, ID: d.ID, Name: d.Name, Driver: driverOverlay, Created: d.Created, EnableIPv4: true,
		Internal: d.Internal, Attachable: d.Attachable, Options: maps.Clone(d.Options), Labels: maps.Clone(d.Labels), Overlay: &d,
	}
	for _, s := range d.Subnets {
		rec.Subnets = append(rec.Subnets, subnet{Prefix: s.Prefix, Gateway: s.Gateway})
	}
	return rec
}

// overlays returns the definitions of the overlay networks that this host knows, by ID.
func (reg *registry) overlays() map[string]overlay.Definition {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	all := map[string]overlay.Definition{}
	for _, n := range reg.inv.networks {
		if n.Overlay != nil {
			all[n.ID] = *n.Overlay
		}
	}
	return all
}

// Overlays returns the IDs of the overlay networks that this host knows.
func (m *Manager) Overlays() []string {
	ids := slices.AppendSeq([]string{}, maps.Keys(m.overlays()))
	slices.Sort(ids)
	return ids
}

// NamesPath is the file of the names on an overlay network, or "" for other networks.
func (m *Manager) NamesPath(id string) string { return m.overlays()[id].Names }

// joinOverlays makes what is missing of a sandbox's interfaces on overlay networks. The
// namespace of the sandbox exists.
func (i *interfaces) joinOverlays(s Sandbox) error {
	if !s.onOverlay() {
		return nil
	}
	var failed []error
	var services swarmlb.Task
	fresh := false
	defined := i.reg.overlays()
	for _, e := range s.Endpoints {
		if !e.Overlay {
			continue
		}
		if there, err := bridge.HasInside(s.Netns, e.Name); err == nil && !there {
			fresh = true
		}
		d, known := defined[e.NetworkID]
		err := errs.NotFound("network %s not found", e.NetworkID)
		if known {
			err = i.joinOverlay(s.Netns, d.Network, e)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("overlay network %s: %w", e.Network, err))
			continue
		}
		// Without the file the process of the swarm sets them a little later.
		if text, err := os.ReadFile(d.Services); err == nil {
			var on []swarmlb.Service
			if err := json.Unmarshal(text, &on); err == nil {
				services.Services = append(services.Services, on...)
			}
		}
	}
	// Later the rules are the process's alone, which knows more of the container than
	// these files.
	if fresh && len(failed) == 0 {
		_, err := lbkernel.Apply(s.Netns, services)
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

func (i *interfaces) joinOverlay(netns string, n overlay.Network, e Endpoint) error {
	mac, err := overlay.ParseMAC(e.MAC)
	if err != nil {
		return err
	}
	host := i.opts.overlays()
	if _, err := host.Ensure(n); err != nil {
		return err
	}
	return host.AddEndpoint(n, kernel.Endpoint{ID: e.ID, Netns: netns, Name: e.Name, Addr: e.IPv4.Address, MAC: mac})
}

// removeOverlayOrphans removes the namespaces of overlay networks that have no record,
// and from the others the endpoints of containers that no longer run.
func (i *interfaces) removeOverlayOrphans(sandboxes map[string]Sandbox) error {
	host := i.opts.overlays()
	present, err := host.Networks()
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, s := range sandboxes {
		for _, e := range s.Endpoints {
			used[e.ID] = true
		}
	}
	known := i.reg.overlays()
	var failed []error
	for _, id := range present {
		endpoints, err := host.Endpoints(id)
		failed = append(failed, err)
		for _, e := range endpoints {
			if !used[e] && !strings.HasPrefix(e, OwnEndpoint) {
				failed = append(failed, host.RemoveEndpoint(id, e))
			}
		}
		if _, is := known[id]; !is {
			failed = append(failed, host.Remove(id))
		}
	}
	return errors.Join(failed...)
}

// OwnEndpoint begins the IDs of endpoints of the host itself, which the process of the
// swarm makes.
const OwnEndpoint = "host-"
