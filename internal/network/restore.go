// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/nft"
)

// Restore reconciles the kernel with the networks and with the sandboxes of
// running containers, by container ID. It compares first and only changes what
// differs. It removes everything that has the engine's names and belongs to none
// of the sandboxes. So the caller must pass the sandbox of every container that
// may be running, also if its shim did not answer. unread are the IDs of
// containers whose records can't be read: what the kernel has of them is kept.
// Restore is called once, before any other method except List and Inspect.
func (m *Manager) Restore(ctx context.Context, sandboxes map[string]Sandbox, unread []string) error {
	for id, s := range sandboxes {
		if s.Schema > SandboxSchema {
			return fmt.Errorf("container %s: its sandbox has schema %d, this release knows up to %d: it was written by a newer one", id, s.Schema, SandboxSchema)
		}
	}
	// The claim is held until the bridges exist and are marked with their owner, so
	// that of two daemons that start at once one is first.
	release := sync.OnceFunc(m.opts.claimToStart(ctx))
	defer release()
	owner, err := m.opts.checkBridgeOwner(sandboxes)
	if err != nil {
		return err
	}
	if err := m.guard.chooseTable(sandboxes, unread, owner); err != nil {
		return err
	}
	if len(unread) > 0 {
		if sandboxes, err = m.observeAll(sandboxes, unread, owner); err != nil {
			return err
		}
	}
	bridges, err := m.adoptSandboxes(sandboxes, owner)
	if err != nil {
		return err
	}
	// What the kernel has of an unknown network would be removed.
	if id, name, found := m.unknown(sandboxes); found && len(m.damaged) > 0 {
		d := m.damaged[0]
		return fmt.Errorf("network record %s is damaged: %w; container %s runs in network %q, whose record it may be: restore the file, or stop the container's shim", d.path, d.why, id, name)
	}
	if err := m.guard.openTable(); err != nil {
		return err
	}
	if err := m.guard.admit(ctx, bridges...); err != nil {
		return err
	}
	if err := m.opts.setAside(m.damaged); err != nil {
		return err
	}
	if err := removeTemps(m.opts.Root); err != nil {
		return fmt.Errorf("networks: %w", err)
	}
	m.interfaces.ensureParents()
	ports, err := bridge.Ports()
	if err != nil {
		return err
	}
	if err := m.interfaces.ensureBridges(bridges, sandboxes, ports); err != nil {
		return err
	}
	release()
	m.interfaces.restoreSandboxes(sandboxes, ports)
	if err := m.interfaces.removeOrphans(sandboxes, bridges, ports); err != nil {
		return err
	}
	for _, rec := range m.condemned {
		if err := m.finishRemoval(ctx, rec); err != nil {
			m.opts.Log.Error("the removal of a network can't be finished", "network", rec.Name, "error", err)
		}
	}
	if err := m.repairs.start(); err != nil {
		// The state is right now, and the next start compares it again.
		m.opts.Log.Warn("changes that other programs make to the network will not be noticed", "error", err)
	}
	return nil
}

// observeAll returns the sandboxes with those of the containers in unread, which
// it builds from the kernel's state.
func (m *Manager) observeAll(sandboxes map[string]Sandbox, unread []string, owner ownership) (map[string]Sandbox, error) {
	sandboxes = maps.Clone(sandboxes)
	if sandboxes == nil {
		sandboxes = map[string]Sandbox{}
	}
	ports, err := bridge.Ports()
	if err != nil {
		return nil, err
	}
	var published []nft.Element
	if m.opts.filtering() {
		if err := m.guard.table.open(); err != nil {
			return nil, err
		}
		if published, err = m.guard.table.elements(); err != nil {
			return nil, err
		}
	}
	if err := m.definePredefined(owner); err != nil {
		return nil, err
	}
	for _, id := range unread {
		s, ok, err := m.observe(id, ports, published)
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", id, err)
		}
		if ok {
			sandboxes[id] = s
		}
	}
	return sandboxes, nil
}
