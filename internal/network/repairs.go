// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"sync"
	"time"

	"holdfast/internal/network/bridge"
)

// The engine learns of changes by other programs from the kernel's notifications.
// A firewall reload causes many of them, so the state is compared once they have
// paused for a moment. When two programs keep undoing each other's work, the
// pause doubles each time (backoff).
//
// Other programs set up their packet filter with many commands. If our rules came
// back into one of their chains in between, their command that deletes the chain
// would fail. So their filters are compared only after a longer time without
// changes.
const (
	repairAfter       = 50 * time.Millisecond
	repairOthersAfter = 500 * time.Millisecond
	repairAtMost      = 10 * time.Second
	// sweepAfter is longer than the kernel usually takes to remove a namespace that
	// nothing holds.
	sweepAfter = time.Second
)

// repairs runs the goroutines that repair what other programs change of what
// Restore has set up. It calls the guard and the interfaces, so its lock comes
// before all of theirs.
type repairs struct {
	opts       *parsed
	reg        *registry
	guard      *guard
	interfaces *interfaces

	// changing is read-locked by methods of Manager that change both the intended
	// and the actual state, and write-locked while the two are compared.
	changing sync.RWMutex

	changes changes
	// Each of these wakes a goroutine. Their capacity is 1.
	changed  chan struct{} // changes noted something
	others   chan struct{} // another program's packet filter changed
	released chan struct{} // a sandbox was released

	stops []func() error // end the watches of the kernel; empty before start and after stop
	quit  chan struct{}
	done  chan struct{}
}

func newRepairs(opts *parsed, reg *registry, g *guard, i *interfaces) *repairs {
	return &repairs{
		opts: opts, reg: reg, guard: g, interfaces: i,
		changed: make(chan struct{}, 1), others: make(chan struct{}, 1), released: make(chan struct{}, 1),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
}

// suspend keeps repairs from starting until resume is called. The caller changes
// both the intended and the actual state meanwhile.
func (r *repairs) suspend() (resume func()) {
	r.changing.RLock()
	return r.changing.RUnlock
}

// start starts the goroutines. Call it once.
func (r *repairs) start() error {
	var stops []func() error
	fail := func(err error) error {
		for _, stop := range stops {
			err = errors.Join(err, stop())
		}
		return err
	}
	stops, err := r.guard.watch(func() { r.changes.noteRules(); signal(r.changed) }, func() { signal(r.others) })
	if err != nil {
		return fail(err)
	}
	stop, err := bridge.Watch(r.noteInterface)
	if err != nil {
		return fail(err)
	}
	stops = append(stops, stop)
	ports, err := bridge.Ports()
	if err != nil {
		return fail(err)
	}
	r.changes.notePorts(ports)
	r.stops = stops
	if r.guard.others.isLate() {
		signal(r.others)
	}
	var loops sync.WaitGroup
	loops.Go(func() { r.run(r.changed, repairAfter, false, r.repairOwn) })
	loops.Go(func() { r.run(r.others, repairOthersAfter, true, r.repairOthers) })
	loops.Go(func() { r.run(r.released, sweepAfter, true, r.sweep) })
	go func() { loops.Wait(); close(r.done) }()
	return nil
}

// stop ends the goroutines, if they were started.
func (r *repairs) stop() error {
	if r.stops == nil {
		return nil
	}
	close(r.quit)
	var errs []error
	for _, stop := range r.stops {
		errs = append(errs, stop())
	}
	r.stops = nil
	<-r.done
	return errors.Join(errs...)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// noteInterface handles a notification about an interface.
func (r *repairs) noteInterface(e bridge.Event) {
	switch {
	case e.Lost || e.Address || e.Router:
		r.changes.noteInterfaces()
		signal(r.changed)
	case ourVeth.MatchString(e.Name):
		if r.changes.noteVeth(e) {
			signal(r.changed)
		}
	case (e.Gone || !e.Up) && r.reg.hasBridge(e.Name):
		r.changes.noteInterfaces()
		signal(r.changed)
	case e.Kind == "bridge", e.Port && e.Kind != "veth" && e.Kind != "tun":
		// This may be another program's bridge, which the rules that drop the rest
		// name.
		if r.guard.table.closes() {
			signal(r.others)
		}
	}
}

// run calls repair some time after a change was signalled. With settle it waits
// until no change was signalled for that time.
func (r *repairs) run(changes chan struct{}, after time.Duration, settle bool, repair func() bool) {
	pause := after
	for {
		select {
		case <-changes:
		case <-r.quit:
			return
		}
		if !r.await(changes, pause, settle) {
			return
		}
		if repair() {
			pause = min(pause*2, repairAtMost)
		} else {
			pause = after
		}
	}
}

// await waits for the pause and returns true, or returns false if the watch was
// ended.
func (r *repairs) await(changes chan struct{}, pause time.Duration, settle bool) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	late := time.NewTimer(repairAtMost)
	defer late.Stop()
	if !settle {
		changes = nil
	}
	for {
		select {
		case <-timer.C:
			return true
		case <-late.C:
			return true
		case <-changes:
			timer.Reset(pause)
		case <-r.quit:
			return false
		}
	}
}

// repairOwn makes the engine's own rules and interfaces what they should be. It
// reports whether anything had to be changed.
func (r *repairs) repairOwn() (repaired bool) {
	r.changing.Lock()
	defer r.changing.Unlock()
	rules, interfaces := r.changes.take()
	table := r.guard.table.name
	if rules {
		changed, err := r.guard.table.sync()
		if err != nil {
			r.opts.Log.Error("the packet filter was changed by others and can't be set up again: published ports may not answer", "table", table, "error", err)
		} else if changed {
			r.opts.Log.Warn("the packet filter was changed by others, it is set up again", "table", table)
		}
		repaired = changed
	}
	if interfaces {
		changed, err := r.interfaces.repairAll()
		if err != nil {
			r.opts.Log.Error("a bridge was changed by others and can't be set up again", "error", err)
		}
		repaired = repaired || changed
	}
	return repaired
}

// repairOthers restores the engine's rules in the packet filters of other programs.
func (r *repairs) repairOthers() (repaired bool) {
	changed, again, err := r.guard.syncOthers(context.Background())
	if err != nil {
		r.opts.Log.Error("the packet filter can't be brought in line with the changes of another program", "table", r.guard.table.name, "error", err)
	}
	if again {
		signal(r.others) // retry, with backoff
	}
	return changed || again
}

// sweep removes the interfaces of released sandboxes.
func (r *repairs) sweep() (repaired bool) {
	r.changing.Lock()
	defer r.changing.Unlock()
	if err := r.interfaces.removeReleased(); err != nil {
		r.opts.Log.Error("interfaces of containers that no longer run can't be removed", "error", err)
	}
	return false
}
