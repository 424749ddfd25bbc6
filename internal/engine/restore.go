// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// helloTimeout bounds how long a shim may take to answer Hello before it counts as
// silent. A silent shim is asked again, so a false alarm only delays adoption.
const helloTimeout = 2 * time.Second

// Restore observes every container, adopts those that run, and finishes what a crash
// interrupted. Then requests that change something proceed. Restarts and removals
// that are due may still be under way when it returns.
func (e *Engine) Restore(ctx context.Context) error { return e.restorer.restore(ctx) }

// restorer finds out what has become of containers that an earlier daemon started, or
// whose shim has gone, and carries out the verdict of container.Reconcile.
type restorer struct {
	*progress
	config    *settings
	store     Store
	shims     Shims
	images    Images
	networks  Networks
	volumes   Volumes
	host      oci.Host
	log       *slog.Logger
	index     *index
	journal   *journal
	names     *nameService
	records   *records
	effects   *hostEffects
	trees     *trees
	scheduler *scheduler
	losses    *losses
	stopper   *stopper
	adopter   *adopter
	replacer  *replacer
	stats     *statsHub
}

// restore is Engine.Restore.
func (r *restorer) restore(ctx context.Context) error {
	if err := oci.EnsureAppArmor(r.host); err != nil {
		r.log.Warn("the default AppArmor profile is not loaded: containers that want it will not start", "error", err)
	}
	actors := r.index.all()
	found := make([]found, len(actors))
	inParallel(len(actors), 32, func(i int) { found[i] = r.observe(ctx, actors[i]) })
	failpoint.Here("restore.looked")

	// The kernel's network state is restored once for all containers that run or may
	// run.
	sandboxes := map[string]network.Sandbox{}
	for i, a := range actors {
		switch found[i].verdict {
		case container.Adopt, container.Retry, container.Watch, container.HaltLeft:
			if a.sandbox.ID != "" {
				sandboxes[a.id] = a.sandbox
			}
		}
	}
	if err := holdSnapshots(ctx, r.images, r.index); err != nil {
		return fmt.Errorf("hold the images of containers: %w", err)
	}
	failpoint.Here("restore.held-images")
	if err := r.networks.Restore(ctx, sandboxes, r.index.unread); err != nil {
		return fmt.Errorf("restore networks: %w", err)
	}
	failpoint.Here("restore.joined-networks")
	if err := r.restoreVolumes(actors, found); err != nil {
		return fmt.Errorf("restore volumes: %w", err)
	}
	failpoint.Here("restore.mounted-volumes")
	if err := r.finishCreations(ctx); err != nil {
		return fmt.Errorf("restore containers: %w", err)
	}
	if err := r.finishRemovals(); err != nil {
		return fmt.Errorf("restore containers: %w", err)
	}

	var pending sync.WaitGroup
	inParallel(len(actors), runtime.GOMAXPROCS(0), func(i int) {
		a := actors[i]
		r.apply(a, found[i], &pending)
		if a.spec.Committing {
			pending.Go(func() { r.trees.thawAfterCommit(a) })
		}
		go a.run()
	})
	failpoint.Here("restore.applied")
	r.sweepRunDirs()
	// Without live restore, containers that still run are stopped before requests
	// proceed, so that no client sees them run and then end. What a crash interrupted
	// is cleared before that, so that no client sees it incomplete.
	r.awaitRestored(ctx, &pending)
	r.names.begin()
	failpoint.Here("restore.done")
	close(r.restored)
	return nil
}

// awaitRestored waits for what a restore must finish, for at most the shutdown
// time-out: a container that takes longer to stop must not delay requests for the
// others.
func (r *restorer) awaitRestored(ctx context.Context, pending *sync.WaitGroup) {
	if t := r.config.Load().ShutdownTimeout; t >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(t)*time.Second)
		defer cancel()
	}
	finished := make(chan struct{})
	go func() {
		pending.Wait()
		close(finished)
	}()
	select {
	case <-finished:
	case <-r.closing:
	case <-ctx.Done():
		r.log.Warn("some containers take long to stop or to clear: requests for the others proceed")
	}
}

// found is the observation of one container, and what to do about it.
type found struct {
	verdict container.Verdict
	seen    container.Observation
	shim    Shim // nil if none answers
	rec     proto.State
}

// observe observes a container and decides what to do about it. It changes nothing.
func (r *restorer) observe(ctx context.Context, a *actor) found {
	f := found{}
	v := a.view.Load() // not the actor's fields, because its loop may run
	var o container.Observation
	// The report of a shim is newer than its files, which are only read if no shim
	// answers.
	fromFiles := func() {
		f.rec, o.Record = r.records.last(&v.spec, r.records.completed(&v.spec))
	}
	dialCtx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	shim, err := r.shims.Dial(dialCtx, r.store.RunDir(a.id))
	switch {
	case err == nil:
		f.shim, f.rec = shim, shim.Hello().State
		o.Shim, o.Record = container.ShimAnswers, recordOf(f.rec)
	case errors.Is(err, errdefs.ErrNotFound):
		fromFiles()
		o.Process = a.descriptors.canSucceed(f.rec)
	default:
		fromFiles()
		a.log.Warn("the shim does not answer, retrying", "error", err)
		o.Shim = container.ShimSilent
	}
	f.seen = o
	desired := desiredOf(&v.spec, f.rec)
	f.verdict = container.Reconcile(container.Rules{
		Desired: desired, LiveRestore: r.config.Load().LiveRestore || r.handedOver, AutoRemove: v.req.HostConfig.AutoRemove,
		Restart: container.ShouldRun(r.records.begins(), v.spec.Restart, desired, !f.rec.Started.IsZero(), f.rec.ExitCode, f.rec.RestartCount),
	}, o)
	return f
}

// apply carries out a verdict, in the actor's loop or before the loop runs. Restore
// waits for what is added to pending.
func (r *restorer) apply(a *actor, f found, pending *sync.WaitGroup) {
	if r.observes.Load() {
		r.applyObserved(a, f)
		return
	}
	a.rec = withLastRun(f.rec, &a.spec)
	a.ending.death = nil // the shim's journal, which is read below, contains it
	a.recordUserStop()
	for _, x := range f.rec.Execs {
		r.index.addExec(x.Exec, a.id)
	}
	a.enter(a.phase.Found(f.verdict, f.seen, a.hasRun()))
	switch f.verdict {
	case container.Keep:
		r.ingest(a)
		if f.shim == nil && f.seen.Record.Over() && !r.isRestored() && r.effects.runtimes.has(a.spec) { // otherwise applyRecordedEnd does it
			pending.Go(func() { r.clearEnded(a) })
		}
	case container.Adopt:
		r.adopt(a, f, pending)
	case container.HaltLeft:
		a.log.Info("live restore is off: stopping the container, which the last daemon left running")
		pending.Add(1)
		subscribed := r.adopter.attach(a, f.shim)
		go r.haltLeft(a, subscribed, r.records.begins(), pending)
	case container.Retry:
		go r.observeUntilKnown(a)
	case container.Watch:
		a.log.Warn("the container runs without its shim")
		r.ingest(a)
		r.replacer.findSuccessor(a, f.rec)
	case container.Lose:
		journalled := r.ingest(a)
		a.recordLostEnd(journalled)
		pending.Add(1)
		go func() {
			defer pending.Done()
			r.losses.clearLost(a)
		}()
	case container.Abort:
		pending.Add(1)
		go func() {
			defer pending.Done()
			r.abort(a, f)
		}()
	case container.Run:
		r.ingest(a)
		r.scheduler.scheduleStart(a)
	case container.Clear:
		if r.ingest(a) {
			a.rec.Pid = 0 // the shim was killed between its journal and its state
		}
		a.shim = f.shim
		go r.finishRemoval(a, f.shim)
	}
	a.publish()
}

// adopt connects to a running container's shim.
func (r *restorer) adopt(a *actor, f found, pending *sync.WaitGroup) {
	if len(a.halts) == 0 && a.spec.Desired == container.DesiredStopped && f.seen.Record.Alive() && !f.rec.Manual {
		// The last daemon died before it passed the stop to the shim. The client that
		// requested the stop got no answer, so the stop is cancelled.
		a.spec.Desired = container.DesiredRunning
		if err := a.save(); err != nil {
			a.log.Error("the cancelling of the interrupted stop could not be recorded", "error", err)
		}
	}
	subscribed := r.adopter.attach(a, f.shim)
	a.effects.readyToRestart(a.phase.State, a.spec)
	pending.Add(1)
	go r.catchUp(a, f.shim, subscribed, pending)
	if !f.rec.Manual {
		r.stopper.resend(a, f.shim) // the shim did not get them before the connection was lost
	}
}

// catchUp waits until the daemon has handled what the container's shim has reported since
// the daemon connected to it, for at most helloTimeout. The state of the shim's hello
// contains all that the shim had answered clients before. What it answers afterwards waits
// for the daemon. So the daemon's answers do not contradict the shim's.
func (r *restorer) catchUp(a *actor, shim Shim, subscribed <-chan struct{}, pending *sync.WaitGroup) {
	defer pending.Done()
	late := time.NewTimer(helloTimeout)
	defer late.Stop()
	select {
	case <-subscribed:
	case <-r.closing:
		return
	case <-late.C:
		return
	}
	var handled <-chan struct{}
	select {
	case <-shim.Done():
		// The shim has ended before the subscription. Its record is the last that it has
		// reported to anybody.
		handled = awaitRecord(a, func() (last proto.State) {
			last, _ = r.records.last(&a.spec, r.records.read(&a.spec))
			return last
		})
	default:
		passed := make(chan struct{})
		if !a.post(func() { close(passed) }) {
			return
		}
		handled = passed
	}
	select {
	case <-handled:
	case <-r.closing:
	case <-late.C:
	}
}

// haltLeft stops a container that the last daemon left running, because live restore
// is off. It runs outside the loop.
func (r *restorer) haltLeft(a *actor, subscribed <-chan struct{}, begins container.Begin, pending *sync.WaitGroup) {
	defer pending.Done()
	<-subscribed // so that the shim's last report is not missed
	err := a.stop(context.Background(), StopOptions{}, false)
	if err != nil && !errors.Is(err, errNothing) {
		a.log.Error("the container could not be stopped", "error", err)
		return
	}
	a.post(func() { r.scheduler.startByPolicy(a, begins) })
}

// finishRemoval finishes a removal that a crash interrupted. It runs outside the loop.
func (r *restorer) finishRemoval(a *actor, shim Shim) {
	if shim != nil {
		r.adopter.subscribe(a, shim)
	}
	a.post(func() {
		a.remove(RemoveOptions{Volumes: a.req.HostConfig.AutoRemove || a.spec.RemoveVolumes}, func(error) {})
	})
}

// ingest journals the entries in the journal of a shim that is gone. It reports
// whether the shim journalled the end of the last run.
func (r *restorer) ingest(a *actor) (died bool) {
	entries, err := r.shims.Journal(r.store.RunDir(a.id), 0)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		a.log.Warn("the shim's journal can't be read", "error", err)
	}
	for _, entry := range entries {
		switch entry.Action {
		case proto.ActionStart:
			died = false
		case proto.ActionDie:
			died = true
		case proto.ActionExited:
			continue
		}
		r.journal.record(a, entry, a.rec.Life)
	}
	return died
}

// sweepRunDirs removes run directories without a container.
func (r *restorer) sweepRunDirs() {
	ids, err := r.store.RunDirs()
	if err != nil {
		r.log.Warn("run directories can't be listed", "error", err)
		return
	}
	for _, id := range ids {
		if r.index.has(id) || slices.Contains(r.index.unread, id) {
			continue
		}
		if _, err := r.shims.State(r.store.RunDir(id)); err == nil {
			// A shim wrote its state there, but the spec is missing or can't be read.
			// What can't be interpreted must not be destroyed.
			r.log.Warn("a run directory has no readable container: it is left alone", "container", id)
			continue
		}
		if err := r.effects.mounter.clearRun(id); err != nil {
			r.log.Warn("a run directory without a container could not be removed", "container", id, "error", err)
		}
	}
}

// restoreVolumes sets which containers have which volumes mounted.
func (r *restorer) restoreVolumes(actors []*actor, found []found) error {
	users := map[string][]string{}
	for i, a := range actors {
		switch found[i].verdict {
		case container.Keep, container.Run, container.Lose, container.Clear:
			continue
		}
		for _, m := range a.mounts {
			if m.volume() {
				users[m.Name] = append(users[m.Name], a.id)
			}
		}
	}
	return r.volumes.Restore(users)
}
