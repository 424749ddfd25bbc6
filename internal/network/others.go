// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/firewall"
	"holdfast/internal/network/nft"
	"holdfast/internal/network/swarmlb"
)

// busPatience bounds the wait for firewalld, which does not answer while it
// reloads.
const busPatience = 2 * time.Second

// otherFilters are the packet filters of other programs. Its lock comes before that
// of the table, which filters what the others accept.
type otherFilters struct {
	opts  *parsed
	reg   *registry
	table *ruleTable
	zones firewall.Firewalld // needs no lock
	// leaving: other programs' packet filters shall accept nothing of ours.
	leaving atomic.Bool

	// mu is held while other programs' packet filters are compared.
	mu sync.Mutex
	// refusing lists the chains that were last logged as impossible to change.
	refusing []string
	// late: the bridges could not be registered with firewalld yet.
	late   bool
	closed bool
}

// admission is what other programs' packet filters shall accept: the bridges,
// each with the families that it has addresses of and that the engine filters.
func (o *otherFilters) admission() firewall.Admission {
	// Forwarding that the engine switched on stays closed for the rest, also after
	// leave.
	r := o.table.currentRest()
	a := firewall.Admission{Close: r.close, Rest: r.rules}
	if o.leaving.Load() {
		return a
	}
	bridges, families := o.reg.filtered()
	for _, b := range bridges {
		for _, addr := range b.Addrs {
			to := &a.IPv4
			if addr.Addr().Is6() {
				to = &a.IPv6
			}
			if families[nft.FamilyOf(addr.Addr())] && !slices.Contains(*to, b.Name) {
				*to = append(*to, b.Name)
			}
		}
	}
	if families[0] && entry() {
		a.IPv4 = append(a.IPv4, swarmlb.IngressInterface)
	}
	return a
}

// entry reports whether this host is an entry to the published ports of a swarm. The
// swarm process makes it one, with rules whose change is noticed here. A host of
// which it can't be found out counts as one.
func entry() bool {
	exists, err := bridge.Exists(swarmlb.IngressInterface)
	return exists || err != nil
}

// sync makes other programs' packet filters accept what the bridges forward, and
// reports whether anything had to be changed.
func (o *otherFilters) sync(ctx context.Context, level slog.Level) (changed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	table := o.table.opened()
	if table == nil || o.closed {
		return false
	}
	a := o.admission()
	did := o.admit(table, a)
	o.logAdmitted(level, did)
	entered, err := o.enterZones(ctx, level, a)
	if err != nil && !o.late {
		o.opts.Log.Warn("firewalld may drop what the bridges forward", "error", err)
	}
	o.late = err != nil
	return entered || len(did.Accepted)+len(did.Withdrawn)+len(did.Closed) > 0
}

// leave removes the engine's rules from other programs' packet filters, if neither a
// container nor the ports of a swarm need them.
func (o *otherFilters) leave() {
	bridges := o.admission().Bridges()
	if len(bridges) == 0 || o.reg.onBridge() || entry() {
		return
	}
	o.leaving.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), busPatience)
	defer cancel()
	o.sync(ctx, slog.LevelInfo)
	o.leaveZones(ctx, bridges...)
}

// admit makes the rule-based packet filters accept what the admission names. A
// failure does not stop the caller: what they drop stays dropped, and is logged.
// The lock is held.
func (o *otherFilters) admit(table *firewall.Table, a firewall.Admission) firewall.Admitted {
	did, err := table.Admit(a)
	legacy, err2 := firewall.Legacy{}.Admit(o.table.name, a)
	did.Accepted = append(did.Accepted, legacy.Accepted...)
	did.Withdrawn = append(did.Withdrawn, legacy.Withdrawn...)
	did.Closed = append(did.Closed, legacy.Closed...)
	did.Refusing = append(did.Refusing, legacy.Refusing...)
	for _, err := range []error{err, err2} {
		if err != nil {
			did.Refusing = append(did.Refusing, err.Error())
		}
	}
	news := did.Refusing
	if slices.Equal(news, o.refusing) {
		did.Refusing = nil // it was logged before
	}
	o.refusing = news
	return did
}

func (o *otherFilters) logAdmitted(level slog.Level, others firewall.Admitted) {
	log := func(level slog.Level, message string, chains []string) {
		if len(chains) > 0 {
			o.opts.Log.Log(context.Background(), level, message, "chains", chains)
		}
	}
	log(level, "another program's packet filter drops forwarded packets, it now accepts those of the bridges", others.Accepted)
	log(slog.LevelInfo, "another program's packet filter accepts forwarded packets by default: packets between the host's other interfaces, which are only forwarded because the engine switched forwarding on, are now dropped after its rules", others.Closed)
	log(slog.LevelInfo, "our rules in another program's packet filter are no longer needed and were removed", others.Withdrawn)
	log(slog.LevelWarn, "another program's packet filter drops forwarded packets: published ports and connections out of containers need rules there that accept them", others.Refusing)
}

// withdraw removes the rules of a table and its bridges from the packet filters
// that are not nftables tables.
func (o *otherFilters) withdraw(table string) {
	if _, err := (firewall.Legacy{}).Admit(table, firewall.Admission{}); err != nil {
		o.opts.Log.Warn("our rules in another program's packet filter can't be removed", "error", err)
	}
	o.leaveZones(context.Background(), o.reg.bridgeNames()...)
}

// isLate reports whether the bridges could not be registered with firewalld, such
// as while it reloads, so that it has to be tried again.
func (o *otherFilters) isLate() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.late
}

// watch calls changed when another program's packet filter may have changed,
// except in nftables. stop is nil if the kernel can't be watched.
func (o *otherFilters) watch(changed func()) (stop func() error) {
	stop, err := firewall.WatchLegacy(changed)
	if err != nil {
		o.opts.Log.Warn("changes that other programs make with iptables-legacy will not be noticed", "error", err)
		stop = nil
	}
	o.zones.Watch(changed)
	return stop
}

// close waits for a comparison that runs, and ends all later ones at once.
func (o *otherFilters) close() {
	if err := o.zones.Close(); err != nil {
		o.opts.Log.Debug("the connection to the system bus did not end well", "error", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}

// enterZones adds the bridges to firewalld's zone and reports whether any was not
// in it.
func (o *otherFilters) enterZones(ctx context.Context, level slog.Level, a firewall.Admission) (entered bool, err error) {
	bridges := a.Bridges()
	if len(bridges) == 0 {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, busPatience)
	defer cancel()
	put, err := o.zones.Admit(ctx, bridges)
	if len(put) > 0 {
		o.opts.Log.Log(ctx, level, "firewalld accepts what the bridges forward", "bridges", put)
	}
	return len(put) > 0, err
}

// leaveZones removes bridges from firewalld's zone.
func (o *otherFilters) leaveZones(ctx context.Context, bridges ...string) {
	ctx, cancel := context.WithTimeout(ctx, busPatience)
	defer cancel()
	if err := o.zones.Forget(ctx, bridges...); err != nil {
		o.opts.Log.Warn("bridges that are no longer used can't be removed from firewalld's zone", "bridges", bridges, "error", err)
	}
}
