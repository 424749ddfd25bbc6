package network

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/firewall"
)

// What others do to the host is found by the kernel's notifications. A reload
// of a firewall comes in many pieces, so what was told is looked at once they
// have stopped for a moment; and where two programs undo each other's work,
// ever more seldom.
//
// Who sets up a packet filter of another program does so by many commands, and
// may be told that a chain can't be deleted in which we have put our rules back
// meanwhile. So that is left in peace until nothing has changed for longer.
const (
	healAfter       = 50 * time.Millisecond
	healOthersAfter = 500 * time.Millisecond
	healAtMost      = 10 * time.Second
)

// watch is the goroutine that heals, and what it was told.
type watch struct {
	m     *Manager
	quit  chan struct{}
	done  chan struct{}
	stops []func() error
	told  chan struct{} // holds one
	// others is told what happened to other programs' packet filters. It holds
	// one.
	others chan struct{}

	mu     sync.Mutex // guards all below
	rules  bool       // the table was changed
	links  bool       // a bridge or an address was
	intact map[int]bool
	// broken are ports that were intact. Those that go altogether went with
	// their container.
	broken map[int]bool
}

// watchKernel begins to heal what others change of what Restore has set up.
// Close ends it.
func (m *Manager) watchKernel() error {
	w := &watch{
		m: m, quit: make(chan struct{}), done: make(chan struct{}), told: make(chan struct{}, 1),
		others: make(chan struct{}, 1),
		intact: map[int]bool{}, broken: map[int]bool{},
	}
	fail := func(err error) error {
		for _, stop := range w.stops {
			err = errors.Join(err, stop())
		}
		return err
	}
	m.rules.RLock()
	filters := m.table != nil
	m.rules.RUnlock()
	if filters {
		others := func() { signal(w.others) }
		stop, err := m.table.Watch(func() { w.tell(func() { w.rules = true }) }, others)
		if err != nil {
			return fail(err)
		}
		w.stops = append(w.stops, stop)
		if stop, err := firewall.WatchLegacy(others); err != nil {
			m.opts.Log.Warn("what others change by iptables-legacy will not be noticed", "error", err)
		} else {
			w.stops = append(w.stops, stop)
		}
		m.zones.Watch(others)
	}
	stop, err := bridge.Watch(w.event)
	if err != nil {
		return fail(err)
	}
	w.stops = append(w.stops, stop)
	ports, err := bridge.Ports()
	if err != nil {
		return fail(err)
	}
	w.mu.Lock()
	for name, p := range ports {
		if ourVeth.MatchString(name) && p.Bridge != "" && p.Up {
			w.intact[p.Index] = true
		}
	}
	w.mu.Unlock()
	m.watch = w
	var loops sync.WaitGroup
	loops.Go(func() { w.run(w.told, healAfter, false, w.heal) })
	loops.Go(func() { w.run(w.others, healOthersAfter, true, w.healOthers) })
	go func() { loops.Wait(); close(w.done) }()
	return nil
}

func (w *watch) stop() error {
	close(w.quit)
	var errs []error
	for _, stop := range w.stops {
		errs = append(errs, stop())
	}
	<-w.done
	return errors.Join(errs...)
}

func (w *watch) tell(what func()) {
	w.mu.Lock()
	what()
	w.mu.Unlock()
	signal(w.told)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// event judges what happened to an interface.
func (w *watch) event(e bridge.Event) {
	switch {
	case e.Lost || e.Address:
		w.tell(func() { w.links = true })
	case ourVeth.MatchString(e.Name):
		w.mu.Lock()
		broke := w.intact[e.Index] && !(e.Up && e.Port)
		if e.Gone {
			delete(w.broken, e.Index)
			delete(w.intact, e.Index)
			broke = false
		} else if e.Up && e.Port {
			delete(w.broken, e.Index)
			w.intact[e.Index] = true
		}
		w.mu.Unlock()
		if broke {
			w.tell(func() { w.broken[e.Index] = true })
		}
	case e.Gone || !e.Up:
		if w.m.hasBridge(e.Name) {
			w.tell(func() { w.links = true })
		}
	}
}

func (m *Manager) hasBridge(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.bridges(), func(b wanted) bool { return b.Name == name })
}

// run heals what it is told of after a while; with settle, once nothing was
// told for that while.
func (w *watch) run(told chan struct{}, after time.Duration, settle bool, heal func() bool) {
	pause := after
	for {
		select {
		case <-told:
		case <-w.quit:
			return
		}
		if !w.await(told, pause, settle) {
			return
		}
		if heal() {
			pause = min(pause*2, healAtMost)
		} else {
			pause = after
		}
	}
}

// await reports whether the while is over, and not the watch.
func (w *watch) await(told chan struct{}, pause time.Duration, settle bool) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	late := time.NewTimer(healAtMost)
	defer late.Stop()
	if !settle {
		told = nil
	}
	for {
		select {
		case <-timer.C:
			return true
		case <-late.C:
			return true
		case <-told:
			timer.Reset(pause)
		case <-w.quit:
			return false
		}
	}
}

// heal makes the kernel what it should be and reports whether it was not.
func (w *watch) heal() (healed bool) {
	w.m.changing.Lock()
	defer w.m.changing.Unlock()
	w.mu.Lock()
	rules, links := w.rules, w.links || len(w.broken) > 0
	w.rules, w.links = false, false
	clear(w.broken)
	w.mu.Unlock()
	log := w.m.opts.Log
	if rules {
		changed, err := w.m.sync()
		if err != nil {
			log.Error("the packet filter was changed by others and can't be set up again: published ports may not answer", "table", w.m.opts.Table, "error", err)
		} else if changed {
			log.Warn("the packet filter was changed by others, it is set up again", "table", w.m.opts.Table)
		}
		healed = changed
	}
	if links {
		changed, err := w.m.healLinks()
		if err != nil {
			log.Error("a bridge was changed by others and can't be set up again", "error", err)
		}
		healed = healed || changed
	}
	return healed
}

// healOthers puts back what other programs' packet filters have lost of ours.
func (w *watch) healOthers() (healed bool) {
	return w.m.syncOthers(context.Background(), slog.LevelWarn)
}

// healLinks puts back what the bridges and their ports have lost. A port that
// is not there is none of its business: its container may just end. The next
// Restore sees to it.
func (m *Manager) healLinks() (healed bool, err error) {
	// So that no bridge comes back whose network is just removed.
	m.links.Lock()
	defer m.links.Unlock()
	m.mu.Lock()
	bridges, sandboxes := m.bridges(), maps.Clone(m.sandboxes)
	m.mu.Unlock()
	var errs []error
	for _, b := range bridges {
		changed, err := bridge.Ensure(b.Bridge)
		errs = append(errs, err)
		if changed {
			m.opts.Log.Warn("a bridge was changed by others, it is set up again", "bridge", b.Name)
		}
		healed = healed || changed
	}
	ports, err := bridge.Ports()
	if err != nil {
		return healed, errors.Join(append(errs, err)...)
	}
	for id, s := range sandboxes {
		for _, e := range s.Endpoints {
			p, there := ports[e.HostName]
			if !there || e.Bridge == "" || p.Bridge == e.Bridge && p.Up {
				continue
			}
			if err := bridge.Attach(p, e.Bridge, e.Isolated); err != nil {
				m.trouble(id, "its interface "+e.HostName+" was taken from the bridge "+e.Bridge+" and can't be put back: "+err.Error())
				errs = append(errs, err)
				continue
			}
			m.opts.Log.Warn("an interface was changed by others, it is set up again", "container", id, "interface", e.HostName)
			healed = true
		}
	}
	return healed, errors.Join(errs...)
}

// trouble notes what a container that runs has lost and can't be given back,
// in words for its user.
func (m *Manager) trouble(container, what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.troubles[container], what) {
		m.troubles[container] = append(m.troubles[container], what)
	}
}

// Troubles are what of a running container's network could not be restored;
// empty is none.
func (m *Manager) Troubles(container string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.troubles[container])
}
