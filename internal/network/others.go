package network

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"holdfast/internal/network/firewall"
)

// busPatience bounds how long firewalld is waited for: it answers no one while
// it reloads.
const busPatience = 2 * time.Second

// admission is what other programs' packet filters shall let through: the
// bridges, each with the families that it has addresses of and that are
// filtered here. m.mu is held.
func (m *Manager) admission() firewall.Admission {
	var a firewall.Admission
	if m.leaving {
		return a
	}
	ipv4, ipv6 := m.filters()
	for _, b := range m.bridges() {
		for _, addr := range b.Addrs {
			to := &a.IPv4
			if addr.Addr().Is6() {
				to = &a.IPv6
			}
			if filtered := addr.Addr().Is4() && ipv4 || addr.Addr().Is6() && ipv6; filtered && !slices.Contains(*to, b.Name) {
				*to = append(*to, b.Name)
			}
		}
	}
	return a
}

// syncOthers makes other programs' packet filters accept what the bridges
// forward, and reports whether anything had to be changed.
func (m *Manager) syncOthers(ctx context.Context, level slog.Level) (changed bool) {
	m.others.Lock()
	defer m.others.Unlock()
	m.rules.RLock()
	table := m.table
	m.rules.RUnlock()
	if table == nil {
		return false
	}
	m.mu.Lock()
	a := m.admission()
	m.mu.Unlock()
	did := m.admit(table, a)
	m.tell(level, did)
	entered := m.enterZones(ctx, level, a)
	return entered || len(did.Accepted)+len(did.Withdrawn) > 0
}

// Leave takes back what other programs' packet filters were given, if no
// container is left that needs it. It is for a daemon that ends for good; the
// next one gives it to them again.
func (m *Manager) Leave() {
	m.mu.Lock()
	bridges := m.admission().Bridges()
	for _, s := range m.sandboxes {
		if s.onBridge() {
			bridges = nil
		}
	}
	m.leaving = m.leaving || len(bridges) > 0
	m.mu.Unlock()
	if len(bridges) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), busPatience)
	defer cancel()
	m.syncOthers(ctx, slog.LevelInfo)
	m.leaveZones(ctx, bridges...)
}

// admit makes the packet filters that are rules accept what is named. That it
// can't is no reason to stop: what they drop stays dropped, and is told of.
// m.others is held.
func (m *Manager) admit(table *firewall.Table, a firewall.Admission) firewall.Admitted {
	did, err := table.Admit(a)
	legacy, err2 := firewall.Legacy{}.Admit(m.opts.Table, a)
	did.Accepted = append(did.Accepted, legacy.Accepted...)
	did.Withdrawn = append(did.Withdrawn, legacy.Withdrawn...)
	did.Refusing = append(did.Refusing, legacy.Refusing...)
	for _, err := range []error{err, err2} {
		if err != nil {
			did.Refusing = append(did.Refusing, err.Error())
		}
	}
	news := did.Refusing
	if slices.Equal(news, m.refusing) {
		did.Refusing = nil // it is known
	}
	m.refusing = news
	return did
}

func (m *Manager) tell(level slog.Level, others firewall.Admitted) {
	log := func(level slog.Level, message string, chains []string) {
		if len(chains) > 0 {
			m.opts.Log.Log(context.Background(), level, message, "chains", chains)
		}
	}
	log(level, "another program's packet filter drops forwarded packets, it now accepts those of the bridges", others.Accepted)
	log(slog.LevelInfo, "our rules in another program's packet filter are needed no more and taken out", others.Withdrawn)
	log(slog.LevelWarn, "another program's packet filter drops forwarded packets: published ports and connections out of containers need rules there that accept them", others.Refusing)
}

// withdraw takes back what the table of this name and its bridges were given
// by the filters that are no nftables tables. m.mu is held.
func (m *Manager) withdraw(table string) {
	if _, err := (firewall.Legacy{}).Admit(table, firewall.Admission{}); err != nil {
		m.opts.Log.Warn("our rules in another program's packet filter can't be taken out", "error", err)
	}
	var bridges []string
	for _, n := range m.networks {
		if n.Bridge != nil {
			bridges = append(bridges, n.Bridge.Name)
		}
	}
	m.leaveZones(context.Background(), bridges...)
}

// enterZones puts the bridges into a zone of firewalld's and reports whether
// any was in none.
func (m *Manager) enterZones(ctx context.Context, level slog.Level, a firewall.Admission) (entered bool) {
	bridges := a.Bridges()
	if len(bridges) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, busPatience)
	defer cancel()
	put, err := m.zones.Admit(ctx, bridges)
	if len(put) > 0 {
		m.opts.Log.Log(ctx, level, "firewalld accepts what the bridges forward", "bridges", put)
	}
	if err != nil {
		m.opts.Log.Warn("firewalld may drop what the bridges forward", "error", err)
	}
	return len(put) > 0
}

// leaveZones takes bridges out of firewalld's zone.
func (m *Manager) leaveZones(ctx context.Context, bridges ...string) {
	ctx, cancel := context.WithTimeout(ctx, busPatience)
	defer cancel()
	if err := m.zones.Forget(ctx, bridges...); err != nil {
		m.opts.Log.Warn("firewalld still knows bridges that need it no more", "bridges", bridges, "error", err)
	}
}
