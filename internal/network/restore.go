package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/firewall"
	"holdfast/internal/network/ipam"
	"holdfast/internal/network/nft"
)

// Restore makes the kernel agree with the networks and with the sandboxes of
// the containers that live, by container ID. It compares first and touches
// only what differs. What carries the engine's names and belongs to none of
// the sandboxes is removed; so the caller gives those of every container that
// may live, also where its shim could not be asked. unread are the IDs of
// containers whose records can't be read: what the kernel has of them is kept
// as it is found. It is called once, before any other method but List and
// Inspect.
func (m *Manager) Restore(ctx context.Context, sandboxes map[string]Sandbox, unread []string) error {
	for id, s := range sandboxes {
		if s.Schema > SandboxSchema {
			return fmt.Errorf("container %s: its sandbox has schema %d, this release knows up to %d: it was written by a newer one", id, s.Schema, SandboxSchema)
		}
	}
	if err := m.checkBridge(); err != nil {
		return err
	}
	m.mu.Lock()
	err := m.chooseTable(sandboxes, unread)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if len(unread) > 0 {
		sandboxes = maps.Clone(sandboxes)
		if sandboxes == nil {
			sandboxes = map[string]Sandbox{}
		}
		if err := m.observeAll(sandboxes, unread); err != nil {
			return err
		}
	}
	m.mu.Lock()
	err = m.adopt(sandboxes)
	bridges := m.bridges()
	filters4, filters6 := m.filters()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if err := m.forward(bridges...); err != nil {
		return err
	}
	if filters4 || filters6 {
		if err := m.openTable(); err != nil {
			return err
		}
		// Before the bridges have their routes, so that nothing passes
		// unfiltered.
		if err := m.Sync(ctx); err != nil {
			return err
		}
	}
	if err := m.ensureParents(); err != nil {
		return err
	}
	for _, b := range bridges {
		changed, err := bridge.Ensure(b.Bridge)
		if err != nil {
			return err
		}
		if changed {
			m.opts.Log.Info("bridge set up", "bridge", b.Name)
		}
	}
	ports, err := bridge.Ports()
	if err != nil {
		return err
	}
	m.repair(ctx, sandboxes, ports)
	for _, s := range sandboxes {
		m.hold(s)
	}
	if err := m.removeOrphans(sandboxes, bridges, ports); err != nil {
		return err
	}
	for _, rec := range m.condemned {
		if err := m.finishRemoval(ctx, rec); err != nil {
			m.opts.Log.Error("the removal of a network can't be finished", "network", rec.Name, "error", err)
		}
	}
	if err := m.watchKernel(); err != nil {
		// All is well now, and looked at again at the next start.
		m.opts.Log.Warn("what others change of the network will not be noticed", "error", err)
	}
	return nil
}

// forward lets the host forward what the bridges need.
func (m *Manager) forward(bridges ...wanted) error {
	if !m.opts.IPForward || len(bridges) == 0 {
		return nil
	}
	v6 := slices.ContainsFunc(bridges, func(b wanted) bool { return b.IPv6 && !b.internal })
	changed, err := bridge.Forward(v6)
	if err != nil {
		return fmt.Errorf("enable forwarding (or set \"ip-forward\" to false): %w", err)
	}
	if changed {
		m.opts.Log.Info("forwarding enabled", "ipv6", v6)
	}
	return nil
}

// observeAll adds what the kernel has of the containers unread to sandboxes.
func (m *Manager) observeAll(sandboxes map[string]Sandbox, unread []string) error {
	ports, err := bridge.Ports()
	if err != nil {
		return err
	}
	var published []nft.Element
	if m.opts.filtering() {
		if err := m.openTable(); err != nil {
			return err
		}
		if published, err = m.table.Elements(); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.definePredefined(); err != nil {
		return err
	}
	for _, id := range unread {
		s, ok, err := m.observe(id, ports, published)
		if err != nil {
			return fmt.Errorf("container %s: %w", id, err)
		}
		if ok {
			sandboxes[id] = s
		}
	}
	return nil
}

// ensureParents makes the interfaces again that the engine made for networks
// without a bridge; a reboot takes them away.
func (m *Manager) ensureParents() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.networks {
		if p := n.Parent; p != nil && p.Made {
			if err := makeParent(p.Name); err != nil {
				// Its containers can't start; all others can.
				m.opts.Log.Error("the parent interface of a network can't be made", "network", n.Name, "error", err)
			}
		}
	}
	return nil
}

func (m *Manager) openTable() error {
	m.rules.Lock()
	defer m.rules.Unlock()
	if m.table != nil {
		return nil
	}
	t, err := firewall.Open(m.opts.Table)
	if err != nil {
		return fmt.Errorf("%w (without nftables in the kernel, set \"iptables\" and \"ip6tables\" to false)", err)
	}
	m.table = t
	return nil
}

// Sync makes the nftables table what it should be, if it is not, and lets other
// programs' packet filters accept what the bridges forward. It is for when
// something else may have flushed the host's rules.
func (m *Manager) Sync(ctx context.Context) error {
	changed, err := m.sync()
	if err == nil && changed {
		m.opts.Log.Info("packet filter set up", "table", m.opts.Table)
	}
	if err == nil {
		// Ours first: what the others accept is filtered by it.
		m.syncOthers(ctx, slog.LevelInfo)
	}
	return err
}

func (m *Manager) sync() (changed bool, err error) {
	m.rules.Lock()
	defer m.rules.Unlock()
	if m.table == nil {
		return false, nil
	}
	m.mu.Lock()
	rs := nft.Build(m.rulesConfig())
	m.mu.Unlock()
	return m.table.Sync(rs)
}

// Rules is the nftables table as it should be, in the words of nft list.
func (m *Manager) Rules() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return nft.Render(nft.Build(m.rulesConfig()))
}

// rulesConfig: m.mu is held.
func (m *Manager) rulesConfig() nft.Config {
	c := nft.Config{Table: m.opts.Table, Direct: m.opts.AllowDirect}
	c.IPv4, c.IPv6 = m.filters()
	for _, b := range m.bridges() {
		nb := nft.Bridge{Name: b.Name, ICC: b.icc, Masquerade: b.masq, Internal: b.internal, Exceptions: m.exceptions(b),
			Subnets: b.subnets, Access: b.access, Trusted: b.trusted, Source: b.source}
		c.Bridges = append(c.Bridges, nb)
	}
	for id := range m.published {
		c.Elements = append(c.Elements, m.opts.elements(m.sandboxes[id])...)
	}
	return c
}

// adopt takes over the sandboxes and defines the predefined networks. m.mu is
// held.
func (m *Manager) adopt(sandboxes map[string]Sandbox) error {
	if err := m.definePredefined(); err != nil {
		return err
	}
	for _, n := range m.networks {
		if predefined(n.Name) || n.ConfigOnly {
			continue
		}
		if err := n.makeAllocators(); err != nil {
			return err
		}
	}
	for id, s := range sandboxes {
		m.sandboxes[id] = s
		m.published[id] = true
		for _, p := range s.Ports {
			m.ports.take(p, id)
		}
		for _, e := range s.Endpoints {
			n := m.networks[e.Network]
			if n == nil {
				continue
			}
			for _, a := range []Addressing{e.IPv4, e.IPv6} {
				n.readopt(a.Address)
			}
		}
	}
	// What was given out last is most likely the highest: go on behind it.
	for _, n := range m.networks {
		for _, a := range n.allocators {
			if h := a.Highest(); h.IsValid() {
				a.Resume(h)
			}
		}
	}
	return nil
}

// readopt takes an address again. One of a subnet that the network no longer
// has needs no keeping.
func (n *object) readopt(p netip.Prefix) {
	if !p.IsValid() {
		return
	}
	for _, a := range n.allocators {
		if a.Contains(p.Addr()) {
			// Taken already: two records name one address. Both run with it, and
			// neither may be given to a third.
			_ = a.Reserve(p.Addr())
		}
	}
}

// wanted is a bridge that shall be there.
type wanted struct {
	bridge.Bridge
	traits
	subnets []netip.Prefix
}

// bridges are those of the networks, and those that endpoints were given in an
// earlier configuration: a container keeps its bridge and its gateway. m.mu is
// held.
func (m *Manager) bridges() []wanted {
	byName := map[string]*wanted{}
	get := func(name string) *wanted {
		w := byName[name]
		if w == nil {
			// Until a network says otherwise: the bridge of an earlier
			// configuration goes by the daemon's options.
			t := traits{mtu: m.opts.MTU, icc: m.opts.ICC, masq: m.opts.IPMasq}
			w = &wanted{Bridge: bridge.Bridge{Name: name, MTU: t.mtu, Filter: !t.icc && bridge.Filtered(), Owner: m.opts.Root}, traits: t}
			byName[name] = w
		}
		return w
	}
	add := func(w *wanted, p netip.Prefix) {
		if p.IsValid() && p.Addr().IsValid() && !slices.Contains(w.Addrs, p) {
			w.Addrs = append(w.Addrs, p)
			w.IPv6 = w.IPv6 || p.Addr().Is6()
		}
		if p = p.Masked(); p.IsValid() && !slices.Contains(w.subnets, p) {
			w.subnets = append(w.subnets, p)
		}
	}
	for _, n := range m.networks {
		if n.Bridge == nil {
			continue
		}
		w := get(n.Bridge.Name)
		w.traits = m.traits(n.record)
		w.MTU, w.Filter = w.mtu, !w.icc && bridge.Filtered()
		w.Exact = n.Bridge.Made
		w.MAC, _ = parseMAC(n.Bridge.MAC)
		for _, s := range n.Subnets {
			add(w, netip.PrefixFrom(s.Bridge, s.Prefix.Bits()))
			if !s.Bridge.IsValid() && !w.internal {
				// The gateway is another, the way out leads by this host all the same.
				w.subnets = append(w.subnets, s.Prefix)
			}
		}
	}
	for _, s := range m.sandboxes {
		for _, e := range s.Endpoints {
			if e.Bridge != "" {
				w := get(e.Bridge)
				w.Filter = w.Filter || e.Rules != nil && !e.Rules.ICC && bridge.Filtered()
				add(w, e.IPv4.BridgeAddress)
				add(w, e.IPv6.BridgeAddress)
			}
		}
	}
	out := make([]wanted, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		w := *byName[name]
		sort.SliceStable(w.Addrs, func(i, j int) bool { return w.Addrs[i].Addr().Less(w.Addrs[j].Addr()) })
		out = append(out, w)
	}
	return out
}

// repair puts back what containers that live have lost, such as after someone
// deleted the bridge. A container that can't be helped must not keep the
// others from being restored.
func (m *Manager) repair(ctx context.Context, sandboxes map[string]Sandbox, ports map[string]bridge.Port) {
	for id, s := range sandboxes {
		log := m.opts.Log.With("container", id)
		if s.Netns == "" || s.Shared {
			continue
		}
		if !bridge.IsNamespace(s.Netns) {
			log.Warn("the network namespace is not mounted where it was: the container keeps running, its interfaces can't be looked after", "path", s.Netns)
			m.trouble(id, "its network namespace is no longer mounted at "+s.Netns+": its interfaces can't be looked after; restart the container")
			continue
		}
		if s.Moved {
			if err := m.finishMove(ctx, s); err != nil {
				log.Warn("a connection that was begun can't be finished", "error", err)
				m.trouble(id, "it was being connected or disconnected when the daemon ended, which can't be finished: "+err.Error())
			}
		}
		for _, e := range s.Endpoints {
			if e.Bridge == "" {
				continue
			}
			p, there := ports[e.HostName]
			switch {
			case !there:
				if err := m.Join(ctx, s); err != nil {
					log.Warn("interface not restored", "interface", e.HostName, "error", err)
					m.trouble(id, "its interface "+e.Name+" is gone and can't be made again: "+err.Error())
				} else {
					log.Warn("the interface was gone, it is made again", "interface", e.HostName)
				}
			case p.Bridge != e.Bridge || !p.Up:
				if err := bridge.Attach(p, e.Bridge, e.Isolated); err != nil {
					log.Warn("interface not restored", "interface", e.HostName, "error", err)
					m.trouble(id, "its interface "+e.HostName+" can't be put on the bridge "+e.Bridge+": "+err.Error())
				} else {
					log.Warn("the interface was down or on no bridge, it is set up again", "interface", e.HostName)
				}
			}
		}
	}
}

// finishMove does what a crash kept Change from doing to interfaces that have no
// end on the host, by which they could be looked for. What is done is fine.
func (m *Manager) finishMove(ctx context.Context, s Sandbox) error {
	if l := s.Left; l != nil && l.Link != nil && !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Name == l.Name }) {
		if err := bridge.RemoveInside(s.Netns, l.Name); err != nil {
			return err
		}
	}
	for _, e := range s.Endpoints {
		if e.Link == nil {
			continue
		}
		if there, err := bridge.HasInside(s.Netns, e.Name); err != nil || !there {
			return errors.Join(err, m.Join(ctx, s))
		}
	}
	return nil
}

var ourVeth = regexp.MustCompile(`^veth[0-9a-f]{11}$`)

// removeOrphans removes namespaces and interfaces of containers that are gone.
func (m *Manager) removeOrphans(sandboxes map[string]Sandbox, bridges []wanted, ports map[string]bridge.Port) error {
	var errs []error
	dirs, err := os.ReadDir(filepath.Dir(filepath.Dir(m.opts.netnsPath("id"))))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network namespaces: %w", err)
	}
	for _, dir := range dirs {
		id := dir.Name()
		path := m.opts.netnsPath(id)
		if s, known := sandboxes[id]; known && s.Netns == path {
			continue
		}
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		m.opts.Log.Info("network namespace of a container that is gone removed", "container", id)
		errs = append(errs, bridge.Leave(path))
	}
	used := map[string]bool{}
	for _, s := range sandboxes {
		for _, e := range s.Endpoints {
			used[e.HostName] = true
		}
	}
	ours := map[string]bool{}
	for _, b := range bridges {
		ours[b.Name] = true
	}
	for name, p := range ports {
		if ours[p.Bridge] && ourVeth.MatchString(name) && !used[name] {
			m.opts.Log.Info("interface of a container that is gone removed", "interface", name)
			errs = append(errs, bridge.RemovePort(p))
		}
	}
	return errors.Join(errs...)
}

// makeAllocators makes the allocators anew from the subnets.
func (n *object) makeAllocators() error {
	n.allocators = nil
	for _, s := range n.Subnets {
		reserved := []netip.Addr{s.Gateway, s.Bridge}
		for _, a := range s.Aux {
			reserved = append(reserved, a)
		}
		a, err := ipam.New(ipam.Subnet{Prefix: s.Prefix, Range: s.Range, Reserved: reserved})
		if err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
		n.allocators = append(n.allocators, a)
	}
	return nil
}

// removeRecord forgets a stored network.
func (m *Manager) removeRecord(n *object) error {
	delete(m.networks, n.Name)
	if err := os.Remove(filepath.Join(m.opts.Root, n.ID+".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network %s: %w", n.Name, err)
	}
	return nil
}
