// SPDX-License-Identifier: Apache-2.0

// Package network is the engine's networks, and the containers' places in them:
// addresses, network namespaces, published ports. It owns the records under
// networks/, the bridges, veths and namespaces of package bridge and the nftables
// table of package firewall. Addresses and ports in use are derived from the
// containers' Sandboxes, which the engine stores and passes to Restore; there are
// no reference counts. The package knows a container only by its ID.
//
// For each run of a container the engine calls Prepare (allocates in memory, and
// opens sockets that reserve the host ports), stores the Sandbox, calls Join and
// Publish, and at the end Release. The Sandbox describes everything that is
// created in the kernel, so each step can be repeated or undone after a crash at
// any point.
package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"

	"holdfast/internal/network/nft"
)

// Manager manages the networks of one engine. Its methods may be called
// concurrently, except for calls that concern the same container.
//
// It has no lock. Each of its parts has a lock of its own, which only its own
// methods take, and calls only parts that are named after it here: repairs, guard,
// interfaces, registry, and those that call none.
type Manager struct {
	opts *parsed

	repairs    *repairs
	guard      *guard
	interfaces *interfaces
	// registry also has the methods that change or read only what is intended.
	*registry
	namespaces namespaces
	troubles   troubles

	// condemned holds the networks whose removal an earlier daemon did not finish.
	// Restore finishes it.
	condemned []*record
	// damaged are the records that Restore sets aside.
	damaged []damage
}

// Open reads the records. It changes nothing on disk or in the kernel; Restore
// does.
func Open(_ context.Context, o Options) (*Manager, error) {
	p, err := o.parse()
	if err != nil {
		return nil, err
	}
	have, err := load(p.Root)
	if err != nil {
		return nil, err
	}
	m := &Manager{opts: &p, registry: newRegistry(&p, have.records), condemned: have.condemned, damaged: have.damaged, namespaces: namespaces{opts: &p, log: p.Log}}
	m.guard = newGuard(m.opts, m.registry)
	m.interfaces = &interfaces{opts: m.opts, reg: m.registry, troubles: &m.troubles, namespaces: &m.namespaces}
	m.repairs = newRepairs(m.opts, m.registry, m.guard, m.interfaces)
	return m, nil
}

// Close closes the connections to the kernel. What is set up in the kernel stays.
func (m *Manager) Close() error {
	if err := m.repairs.stop(); err != nil {
		m.opts.Log.Debug("the watch of the kernel did not end well", "error", err)
	}
	m.namespaces.close()
	return m.guard.close()
}

// Sync makes the nftables table what it should be, if it differs, and makes other
// programs' packet filters accept what the bridges forward. Call it when another
// program may have flushed the host's rules.
func (m *Manager) Sync(ctx context.Context) error { return m.guard.sync(ctx) }

// Rules returns the nftables table as it should be, in the syntax of nft list.
func (m *Manager) Rules() string { return nft.Render(nft.Build(m.guard.table.config())) }

// Leave removes the engine's rules from other programs' packet filters, if no
// container needs them. It is for a daemon that ends for good; the next one adds
// them again.
func (m *Manager) Leave() { m.guard.others.leave() }

// filtering reports whether there is a packet filter.
func (p *parsed) filtering() bool { return p.Iptables || p.Ip6tables }

func randomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
