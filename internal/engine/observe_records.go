// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"os"
	"time"

	"holdfast/internal/container"
	"holdfast/internal/shim/proto"
)

// An observer, and an engine whose daemon has handed over, follow containers that belong
// to another process: a daemon that runs or that may start at any time. That daemon
// removes containers, and gives them new shims. Where no shim reports to this process,
// it learns that from the records.

// recordsEach is the time between two looks at the records of containers.
const recordsEach = time.Second

// followRecords looks for the shims and the ends of containers without a shim, and of those
// for which clients wait. A retired engine mostly learns of a removal by its event, but the
// disk may have been full. A container without a record was removed.
func (r *restorer) followRecords() {
	tick := time.NewTicker(recordsEach)
	defer tick.Stop()
	for {
		select {
		case <-r.closing:
			return
		case <-tick.C:
		}
		for _, a := range r.index.all() {
			// One that may run, and has no shim, may be between two runs: there is no process
			// whose end would be noticed, and clients may follow its log.
			v := a.view.Load()
			looks := v.shim == nil && v.state.Alive()
			a.await(func() { looks = looks || len(a.waiters.list) > 0 })
			if !looks {
				continue
			}
			if _, err := os.Lstat(r.store.ContainerDir(a.id)); errors.Is(err, os.ErrNotExist) {
				r.forgetRemoved(a)
				continue
			}
			r.observeStartedShim(a)
		}
	}
}

// forgetRemoved forgets a container that a daemon has removed.
func (r *restorer) forgetRemoved(a *actor) {
	a.post(func() {
		if !a.removed() {
			r.forget(a)
		}
	})
}

// observeStartedShim connects to a shim that a daemon has started, and follows its
// container.
func (r *restorer) observeStartedShim(a *actor) {
	if a.view.Load().shim != nil {
		return
	}
	f := r.observe(context.Background(), a)
	if f.shim == nil {
		// A retired engine gets the end from the journal.
		a.await(func() { r.applyUnseen(a, f, false) })
		return
	}
	posted := a.post(func() {
		if a.shim != nil || a.phase.State == container.Removing {
			f.shim.Close()
			return
		}
		a.spec.Life = f.rec.Life
		r.applyObserved(a, f)
	})
	if !posted {
		f.shim.Close()
	}
}

// watchObserved waits for the end of a container whose shim was killed. A daemon may
// give the container a new shim, which knows how it ends, also after its process has
// ended. So the end counts as unseen only if no shim and no record tells it within
// recordsEach, and never if a successor runs: that one journals it.
func (r *restorer) watchObserved(a *actor, rec proto.State) {
	awaitProcess(rec)
	began := time.Now()
	for wait := (backoff{0, recordsEach}); wait.wait(a); wait.next = max(wait.next, retryFirst) {
		f := r.observe(context.Background(), a)
		late := time.Since(began) >= recordsEach
		known, took := true, false
		a.await(func() { known, took = r.applyUnseen(a, f, late) })
		if f.shim != nil && !took {
			f.shim.Close()
		}
		if known {
			return
		}
	}
}

// applyUnseen applies what was found of a container whose process has ended, in the
// loop. It reports whether the end is known, or counts as unseen because it is late, and
// whether it has taken the shim that was found.
func (r *restorer) applyUnseen(a *actor, f found, late bool) (known, took bool) {
	switch retired := r.retired.Load(); {
	case a.shim != nil || a.removed() || a.phase.State == container.Ending || !a.phase.State.Alive():
		return true, false
	case f.shim != nil && f.rec.Life == a.spec.Life, f.seen.Record == container.RecordRemoved && !retired:
		r.applyObserved(a, f)
		return true, true
	case f.seen.Record.Over() && (late || !retired):
		r.applyRecordedEnd(a, f)
		return true, true
	case f.verdict == container.Retry || !late || retired:
		return false, false
	}
	r.losses.endUnseen(a)
	return true, false
}
