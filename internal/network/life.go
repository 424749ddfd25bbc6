package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/nft"
)

// Join makes the sandbox's network namespace with its interfaces, addresses
// and routes. It may be repeated.
func (m *Manager) Join(_ context.Context, s Sandbox) error {
	if s.Netns == "" || s.Shared {
		return nil
	}
	links, err := s.links()
	if err != nil {
		return err
	}
	if err := bridge.Join(links); err != nil {
		return fmt.Errorf("network of container %s: %w", s.Container, err)
	}
	m.hold(s)
	return nil
}

// hold keeps a descriptor of the namespace of a sandbox that has interfaces to
// unplug: its shim takes away the file that it is mounted on when the container
// ends. A container that ends without a daemon has long lost its namespace when
// there is one again.
func (m *Manager) hold(s Sandbox) {
	if s.Shared || !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Link != nil }) || !bridge.IsNamespace(s.Netns) {
		return
	}
	f, err := os.Open(s.Netns)
	if err != nil {
		m.opts.Log.Warn("a network namespace can't be held, the container's next start may find its hardware address in use", "container", s.Container, "error", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.held[s.Container]; old != nil {
		old.Close()
	}
	m.held[s.Container] = f
}

// Publish makes the kernel translate the sandbox's host ports, all of them in
// one transaction. It may be repeated. Where the kernel does not translate
// there is nothing to do.
func (m *Manager) Publish(ctx context.Context, s Sandbox) error {
	m.changing.RLock()
	defer m.changing.RUnlock()
	elements := m.opts.elements(s)
	m.mu.Lock()
	m.published[s.Container] = true
	m.mu.Unlock()
	if err := m.add(elements); err != nil {
		// The table was taken away, or holds a port of a container that died
		// while nobody looked: compare all of it.
		if serr := m.Sync(ctx); serr != nil {
			return fmt.Errorf("publish ports of container %s: %w", s.Container, errors.Join(err, serr))
		}
	}
	return m.forgetFlows(s)
}

func (m *Manager) add(elements []nft.Element) error {
	m.rules.RLock()
	defer m.rules.RUnlock()
	if m.table == nil || len(elements) == 0 {
		return nil
	}
	return m.table.Add(elements)
}

// TeardownBatch gives the messages, each for one send on a NETLINK_NETFILTER
// socket, that end the translation of the sandbox's ports. They are for the
// shim, when the container ends for good: before it closes the ports' sockets.
func (m *Manager) TeardownBatch(s Sandbox) [][]byte {
	elements := m.opts.elements(s)
	m.rules.RLock()
	defer m.rules.RUnlock()
	if m.table == nil || len(elements) == 0 {
		return nil
	}
	return m.table.DeleteBatches(elements)
}

// Release undoes what is left of a sandbox: translations, namespace with its
// interfaces, addresses, host ports. It may be repeated; a Sandbox of an
// earlier life of a container that has a new one is left alone.
func (m *Manager) Release(ctx context.Context, s Sandbox) error {
	m.changing.RLock()
	defer m.changing.RUnlock()
	m.mu.Lock()
	current, known := m.sandboxes[s.Container]
	if known && current.ID != s.ID {
		m.mu.Unlock()
		return nil
	}
	delete(m.published, s.Container)
	m.mu.Unlock()

	// Only who is known to hold the ports may delete by them.
	if known {
		if err := m.delete(m.opts.elements(s)); err != nil {
			return fmt.Errorf("container %s: %w", s.Container, err)
		}
		if err := m.forgetFlows(s); err != nil {
			m.opts.Log.Debug("connection tracking not cleaned", "container", s.Container, "error", err)
		}
	}
	if s.Netns != "" && !s.Shared {
		if err := m.unplug(s); err != nil {
			return fmt.Errorf("container %s: %w", s.Container, err)
		}
		if err := bridge.Leave(s.Netns); err != nil {
			return fmt.Errorf("container %s: %w", s.Container, err)
		}
	}
	if known {
		m.mu.Lock()
		excepted := m.excepted(s)
		m.forget(s)
		delete(m.sandboxes, s.Container)
		delete(m.troubles, s.Container)
		m.mu.Unlock()
		if excepted {
			// Its address is anyone's now, and must not keep its rules.
			if err := m.Sync(ctx); err != nil {
				return fmt.Errorf("container %s: %w", s.Container, err)
			}
		}
	}
	return nil
}

// unplug removes those of a sandbox's interfaces that can't be left to go with
// the namespace. The kernel takes that down some time after the last process in
// it has ended. Until then the parent of a macvlan interface refuses another of
// the same hardware address, so that a restart would fail; and as long as another
// container is in the namespace, the address would be used by two.
func (m *Manager) unplug(s Sandbox) error {
	m.mu.Lock()
	namespace := s.Netns
	held := m.held[s.Container]
	delete(m.held, s.Container)
	m.mu.Unlock()
	if held != nil {
		defer held.Close()
		namespace = fmt.Sprintf("/proc/self/fd/%d", held.Fd())
	}
	for _, e := range s.Endpoints {
		switch {
		case e.Link != nil && bridge.IsNamespace(namespace):
			if err := bridge.RemoveInside(namespace, e.Name); err != nil {
				return err
			}
		case e.HostName != "" && s.Joined:
			if err := bridge.RemoveLink(e.HostName); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *Manager) delete(elements []nft.Element) error {
	m.rules.RLock()
	defer m.rules.RUnlock()
	if m.table == nil || len(elements) == 0 {
		return nil
	}
	return m.table.Delete(elements)
}

// Reserve binds the host ports of a sandbox again, for a shim that takes over
// from one that was killed. A port that somebody else took meanwhile is left
// out and logged: the kernel goes on translating it.
func (m *Manager) Reserve(_ context.Context, s Sandbox) []Reserved {
	var out []Reserved
	for _, p := range s.Ports {
		if p.HostPort == 0 {
			continue
		}
		f, err := bind(p, m.opts.UserlandProxy)
		if err != nil {
			m.opts.Log.Warn("host port not reserved again", "container", s.Container, "port", p.HostPort, "protocol", p.Proto, "error", err)
			m.trouble(s.Container, fmt.Sprintf("the host port %s/%s was taken by another process while the container had no shim (%v): "+
				"connections to it still reach the container where the kernel translates them, and that process where not; "+
				"stop the process and restart the container", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Proto, err))
			continue
		}
		if f == nil {
			continue
		}
		out = append(out, Reserved{Proto: p.Proto, Target: m.opts.target(p), File: f})
	}
	return out
}
