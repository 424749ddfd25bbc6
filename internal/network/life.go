// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
)

// Join creates the sandbox's network namespace with its interfaces, addresses and
// routes. It is idempotent.
func (m *Manager) Join(_ context.Context, s Sandbox) error {
	// An interface that is not complete yet looks like one that another program
	// changed.
	defer m.repairs.suspend()()
	return m.interfaces.joinSandbox(s)
}

// Publish makes the kernel translate the sandbox's host ports, in one
// transaction. It is idempotent. If the options leave translation to the shims it
// does nothing.
func (m *Manager) Publish(ctx context.Context, s Sandbox) error {
	defer m.repairs.suspend()()
	elements := m.opts.elements(s)
	if m.markPublished(s) {
		if err := errors.Join(answerForNeighbours(s), m.Sync(ctx)); err != nil {
			return fmt.Errorf("links of container %s: %w", s.Container, err)
		}
	}
	if err := m.guard.table.add(elements); err != nil {
		// The table was removed, or still has a port of a container that ended while
		// no daemon ran: compare the whole table.
		if serr := m.Sync(ctx); serr != nil {
			return fmt.Errorf("publish ports of container %s: %w", s.Container, errors.Join(err, serr))
		}
	}
	return m.opts.forgetFlows(s, m.isPublished(s.Container))
}

// TeardownBatch returns the messages that end the translation of the sandbox's
// ports. Each is sent on its own on a NETLINK_NETFILTER socket. The shim sends
// them when the container ends for good, before it closes the ports' sockets.
func (m *Manager) TeardownBatch(s Sandbox) [][]byte {
	return m.guard.table.deleteBatches(m.opts.elements(s))
}

// Release undoes what is left of a sandbox: translations, the namespace with its
// interfaces, addresses, host ports. It is idempotent. It does nothing if the
// container has a newer sandbox.
func (m *Manager) Release(ctx context.Context, s Sandbox) error {
	defer m.repairs.suspend()()
	known, newer := m.markWithdrawn(s)
	if newer {
		return nil
	}
	// Elements are deleted by port, so only the sandbox that is known to own the
	// ports may delete them.
	if known {
		if err := m.guard.table.delete(m.opts.elements(s)); err != nil {
			return fmt.Errorf("container %s: %w", s.Container, err)
		}
		if err := m.opts.forgetFlows(s, m.isPublished(s.Container)); err != nil {
			m.opts.Log.Debug("connection tracking not cleaned", "container", s.Container, "error", err)
		}
	}
	if s.Netns != "" && !s.Shared {
		if err := m.namespaces.removeInterfaces(s); err != nil {
			return fmt.Errorf("container %s: %w", s.Container, err)
		}
		if err := bridge.Leave(s.Netns); err != nil {
			return fmt.Errorf("container %s: %w", s.Container, err)
		}
		signal(m.repairs.released)
	}
	if known {
		special := m.forgetSandbox(s)
		m.troubles.forget(s.Container)
		if special {
			// The address is free now. The exception to the rules must not apply to its
			// next user.
			if err := m.Sync(ctx); err != nil {
				return fmt.Errorf("container %s: %w", s.Container, err)
			}
		}
	}
	return nil
}

// closingTime bounds how long a port of a shim that was killed may be in use: the kernel
// closes its sockets one after the other, and the engine notices the end at the first.
const closingTime = time.Second

// Reserve binds the host ports of a sandbox again, for a shim that replaces one
// that was killed. A port that another process took meanwhile is skipped and
// logged; the kernel goes on translating it. After an error, such as that there are no
// free descriptors, no port is reserved, and the caller should try again.
func (m *Manager) Reserve(ctx context.Context, s Sandbox) (out []Reserved, err error) {
	defer func() {
		if err != nil {
			for _, r := range out {
				r.File.Close()
			}
			out = nil
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, closingTime)
	defer cancel()
	for _, p := range s.Ports {
		if p.HostPort == 0 {
			continue
		}
		f, err := bindAgain(ctx, p, m.opts.UserlandProxy)
		switch {
		case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS):
			return out, fmt.Errorf("reserve the ports of container %s again: %w", s.Container, err)
		case err != nil:
			m.opts.Log.Warn("host port not reserved again", "container", s.Container, "port", p.HostPort, "protocol", p.Proto, "error", err)
			m.troubles.add(s.Container, fmt.Sprintf("the host port %s/%s was taken by another process while the container had no shim (%v): "+
				"connections to it still reach the container where the kernel translates them, and that process where not; "+
				"stop the process and restart the container", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Proto, err))
		case f != nil:
			out = append(out, Reserved{Proto: p.Proto, Target: m.opts.target(p), File: f})
		}
	}
	return out, nil
}

// bindAgain binds a port that is free at once, or as soon as the process has ended that
// had it.
func bindAgain(ctx context.Context, p PortMapping, listen bool) (*os.File, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		f, err := bind(p, listen)
		if !errors.Is(err, unix.EADDRINUSE) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}
