package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/event"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// helloTimeout bounds how long a shim may take to say hello before it counts
// as silent. It is asked again later, so this costs nothing but patience.
const helloTimeout = 2 * time.Second

// killTime bounds how long a shutdown waits for a container that it has killed.
const killTime = 5 * time.Second

// Load reads the specs and makes the containers known, so that reads are
// answered at once. What runs is not looked at yet, beyond its files.
func (e *Engine) Load() error {
	specs, broken, err := e.store.LoadAll()
	if err != nil {
		return err
	}
	for _, b := range broken {
		e.leaveAlone(b.ID, b.Err)
	}
	read := make([]loaded, len(specs))
	inParallel(len(specs), runtime.GOMAXPROCS(0), func(i int) { read[i] = e.load(specs[i]) })
	for i, spec := range specs {
		r := &read[i]
		if r.err != nil {
			e.leaveAlone(spec.ID, r.err)
			continue
		}
		if err := e.index.reserve(spec.Name, spec.ID); err != nil {
			// A crash between two writes of a rename can't leave this; hands can.
			e.log.Error("two containers have one name, this one goes by its ID", "container", spec.ID, "error", err)
			spec.Name = spec.ID[:12]
			_ = e.index.reserve(spec.Name, spec.ID)
		}
		a := newActor(e, spec, r.asked)
		a.rec, a.state = e.fromFiles(spec, r.files)
		a.takeKept()
		a.publish()
		e.index.add(a)
	}
	return nil
}

// loaded is what the files tell of one container.
type loaded struct {
	asked
	files records
	err   error // the container can't be used
}

// load reads it. It changes nothing, and may run for several at once.
func (e *Engine) load(spec *container.Spec) (l loaded) {
	if l.asked, l.err = decodeSpec(spec); l.err == nil {
		l.files = e.readRecords(spec)
		l.err = l.files.newer()
	}
	return l
}

// records are a shim's state file and the durable record of its end.
type records struct {
	state, exit       proto.State
	stateErr, exitErr error
}

func (e *Engine) readRecords(spec *container.Spec) (r records) {
	r.state, r.stateErr = e.shims.State(e.store.RunDir(spec.ID))
	r.exit, r.exitErr = e.shims.Exit(e.store.ContainerDir(spec.ID))
	return r
}

// leaveAlone sets a container aside whose spec can't be used. Its files stay as
// they are, for a newer or a repaired daemon, and so does what runs of it.
func (e *Engine) leaveAlone(id string, err error) {
	e.unread = append(e.unread, id)
	e.log.Error("a container's record can't be used: the container is left as it is and can't be managed", "container", id, "error", err)
}

// newer is an error when a release to come wrote how the container runs or has
// ended: what it says must not be taken for nothing.
func (r records) newer() error {
	for _, err := range []error{r.stateErr, r.exitErr} {
		if errdefs.IsFailedPrecondition(err) {
			return err
		}
	}
	return nil
}

// asked is what a spec holds for the engine.
type asked struct {
	req     request
	mounts  []mountPoint
	sandbox network.Sandbox
}

// decodeSpec reads it.
func decodeSpec(spec *container.Spec) (d asked, err error) {
	if d.req, err = decodeRequest(spec.API); err != nil {
		return d, err
	}
	if len(spec.Mounts) > 0 {
		if err := json.Unmarshal(spec.Mounts, &d.mounts); err != nil {
			return d, fmt.Errorf("its mounts can't be read: %w", err)
		}
	}
	if len(spec.Sandbox) > 0 {
		if err := json.Unmarshal(spec.Sandbox, &d.sandbox); err != nil {
			return d, fmt.Errorf("its network record can't be read: %w", err)
		}
		if n := d.sandbox.Schema; n > network.SandboxSchema {
			return d, fmt.Errorf("its network record has schema %d, this release reads up to %d", n, network.SandboxSchema)
		}
	}
	return d, nil
}

// fromFiles is the state that the files tell, before any shim was asked.
func (e *Engine) fromFiles(spec *container.Spec, files records) (proto.State, container.State) {
	rec, seen := e.lastRecord(spec, files)
	switch seen {
	case container.RecordRunning:
		return rec, container.Running
	case container.RecordPaused:
		return rec, container.Paused
	case container.RecordRestarting:
		return rec, container.Restarting
	}
	if spec.Desired == container.DesiredRemoved {
		return rec, container.Removing
	}
	return rec, container.Settle(!rec.Started.IsZero())
}

// lastRecord is what was written last of a container. What was written of an
// earlier life still tells when the container last ran, and is no record of
// this one.
func (e *Engine) lastRecord(spec *container.Spec, files records) (proto.State, container.Record) {
	rec, seen := e.shimRecord(spec, files)
	f := spec.Failure
	if f == nil {
		if seen == container.RecordNone && spec.Desired == container.DesiredStopped && spec.Life > 0 {
			// It ran, a stop was asked, and no end of it was recorded.
			seen = container.RecordRunning
		}
		if seen == container.RecordNone && spec.Desired == container.DesiredRunning && !e.booted() {
			// A shim writes its record before anything runs, and no reboot took
			// it away: the start did not come as far as that.
			seen = container.RecordCreated
		}
		return rec, seen
	}
	// An earlier daemon found the life to be over and recorded it.
	rec.Pid, rec.Status = 0, proto.StatusExited
	if f.Lost {
		rec.Life, rec.ExitCode, rec.Error, rec.Finished = spec.Life, f.ExitCode, f.Error, f.Time
		if rec.Started.IsZero() {
			rec.Started = spec.Created
		}
	}
	return rec, container.RecordExited
}

// booted reports whether the machine was started since the last daemon's life.
// Where that can't be told it may have been.
func (e *Engine) booted() bool {
	lives := e.lives.List()
	n := len(lives)
	return n < 2 || lives[n-1].BootID == "" || lives[n-2].BootID != lives[n-1].BootID
}

func (e *Engine) shimRecord(spec *container.Spec, files records) (proto.State, container.Record) {
	rec, err := files.state, files.stateErr
	if err != nil {
		if !errors.Is(err, errdefs.ErrNotFound) {
			e.log.Warn("the shim's state can't be read", "container", spec.ID[:12], "error", err)
		}
		if rec, err = files.exit, files.exitErr; err != nil {
			if !errors.Is(err, errdefs.ErrNotFound) {
				e.log.Warn("the exit record can't be read", "container", spec.ID[:12], "error", err)
			}
			return proto.State{}, container.RecordNone
		}
	}
	if rec.Life != spec.Life {
		rec.Pid = 0
		return rec, container.RecordNone
	}
	return rec, recordOf(rec)
}

func recordOf(rec proto.State) container.Record {
	switch rec.Status {
	case proto.StatusCreated:
		return container.RecordCreated
	case proto.StatusRunning:
		return container.RecordRunning
	case proto.StatusPaused:
		return container.RecordPaused
	case proto.StatusRestarting:
		return container.RecordRestarting
	case proto.StatusExited:
		return container.RecordExited
	case proto.StatusRemoved:
		return container.RecordRemoved
	}
	return container.RecordNone
}

// Restore looks at every container, adopts what runs, finishes what a crash
// interrupted, and lets effects begin. Restarts and removals that are due go
// on after it has returned.
func (e *Engine) Restore(ctx context.Context) error {
	if err := oci.EnsureAppArmor(e.host); err != nil {
		e.log.Warn("the default AppArmor profile is not loaded: containers that want it will not start", "error", err)
	}
	actors := e.index.all()
	found := make([]found, len(actors))
	inParallel(len(actors), 32, func(i int) { found[i] = e.look(ctx, actors[i]) })
	failpoint.Here("restore.looked")

	// The kernel's network state, once for all: of those that live or may.
	sandboxes := map[string]network.Sandbox{}
	var snapshots []string
	for i, a := range actors {
		snapshots = append(snapshots, a.spec.Image.Snapshot)
		switch found[i].verdict {
		case container.Adopt, container.Retry, container.Watch, container.HaltLeft:
			if a.sandbox.ID != "" {
				sandboxes[a.id] = a.sandbox
			}
		}
	}
	slices.Sort(snapshots)
	if err := e.images.Hold(ctx, slices.Compact(snapshots)); err != nil {
		return fmt.Errorf("hold the images of containers: %w", err)
	}
	failpoint.Here("restore.held-images")
	if err := e.networks.Restore(ctx, sandboxes, e.unread); err != nil {
		return fmt.Errorf("restore networks: %w", err)
	}
	failpoint.Here("restore.joined-networks")
	if err := e.restoreVolumes(actors, found); err != nil {
		return fmt.Errorf("restore volumes: %w", err)
	}
	failpoint.Here("restore.mounted-volumes")
	if err := e.takeBackUnborn(ctx); err != nil {
		return fmt.Errorf("restore containers: %w", err)
	}

	var left sync.WaitGroup
	inParallel(len(actors), runtime.GOMAXPROCS(0), func(i int) {
		a := actors[i]
		e.apply(a, found[i], &left)
		if a.spec.Committing {
			a.committing = true
			left.Go(a.thawAfterCommit)
		}
		go a.loop()
	})
	failpoint.Here("restore.applied")
	e.sweepRunDirs()
	// What live restore does not cover is stopped before anything else is
	// asked of it, so that nobody sees it run and then vanish; and what a crash
	// interrupted is cleared, so that nobody meets half of it.
	e.await(ctx, &left)
	e.knowNames()
	failpoint.Here("restore.done")
	close(e.restored)
	return nil
}

// await waits for what a restore must finish, as long as a shutdown would: a
// container that takes longer to stop keeps nobody from the others.
func (e *Engine) await(ctx context.Context, left *sync.WaitGroup) {
	if t := e.config.Load().ShutdownTimeout; t >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(t)*time.Second)
		defer cancel()
	}
	settled := make(chan struct{})
	go func() {
		left.Wait()
		close(settled)
	}()
	select {
	case <-settled:
	case <-e.closing:
	case <-ctx.Done():
		e.log.Warn("some containers take long to stop or to clear, the others are not kept waiting")
	}
}

// found is what was seen of one container, and what is to be done.
type found struct {
	verdict container.Verdict
	shim    Shim
	rec     proto.State
	process bool
}

// look observes a container. It changes nothing.
func (e *Engine) look(ctx context.Context, a *actor) found {
	f := found{}
	v := a.view.Load() // the loop may run
	var o container.Observation
	// What a shim says is newer than its files, which are read when none does.
	fromFiles := func() {
		f.rec, o.Record = e.lastRecord(&v.spec, e.readRecords(&v.spec))
	}
	dialCtx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	shim, err := e.shims.Dial(dialCtx, e.store.RunDir(a.id))
	switch {
	case err == nil:
		f.shim, f.rec = shim, shim.Hello().State
		o.Shim, o.Record = container.ShimAnswers, recordOf(f.rec)
	case errors.Is(err, errdefs.ErrNotFound):
		fromFiles()
		o.Process = a.adoptable(f.rec)
	default:
		fromFiles()
		a.log.Warn("the shim does not answer, it is asked again", "error", err)
		o.Shim = container.ShimSilent
	}
	f.process = o.Process
	desired := heeded(&v.spec, f.rec)
	f.verdict = container.Reconcile(container.Rules{
		Desired: desired, LiveRestore: e.config.Load().LiveRestore || e.handedOver, AutoRemove: v.req.HostConfig.AutoRemove,
		Restart: container.ShouldRun(v.spec.Restart, desired, !f.rec.Started.IsZero(), f.rec.ExitCode, f.rec.RestartCount),
	}, o)
	return f
}

// apply does what was decided, before the actor's loop runs.
func (e *Engine) apply(a *actor, f found, left *sync.WaitGroup) {
	if e.observes.Load() {
		e.show(a, f)
		return
	}
	a.rec = f.rec
	a.death = nil // it is in the journal that is read below
	a.heed()
	for _, x := range f.rec.Execs {
		e.index.addExec(x.Exec, a.id)
	}
	switch f.verdict {
	case container.Keep:
		a.state = container.Settle(a.hasRun())
		e.ingest(a)
	case container.Adopt:
		if a.spec.Desired == container.DesiredStopped && stateOf(f.rec).Alive() && !f.rec.Manual {
			// The last daemon died before it could tell the shim to stop; who
			// asked for it got no answer.
			a.spec.Desired = container.DesiredRunning
			if err := a.save(); err != nil {
				a.log.Error("the interrupted stop could not be taken back", "error", err)
			}
		}
		a.adopt(f.shim)
	case container.HaltLeft:
		a.log.Info("live restore is off: stopping what the last daemon left running")
		followed := a.adopt(f.shim)
		left.Add(1)
		go func() {
			defer left.Done()
			<-followed // its last words are not to be missed
			err := a.stop(context.Background(), StopOptions{}, false)
			if err != nil && !errors.Is(err, errNothing) {
				a.log.Error("it could not be stopped", "error", err)
				return
			}
			a.post(a.byPolicy)
		}()
	case container.Retry:
		a.state = container.Unknown
		go a.retry()
	case container.Watch:
		a.log.Warn("the container runs without its shim")
		a.state = stateOf(f.rec)
		if !a.state.Alive() {
			a.state = container.Running
		}
		e.ingest(a)
		a.replace(f.rec)
	case container.Lose:
		told := e.ingest(a)
		a.lose()
		left.Add(1)
		go func() {
			defer left.Done()
			a.finishLost(told)
		}()
	case container.Abort:
		a.state = container.Starting
		left.Add(1)
		go func() {
			defer left.Done()
			a.abort(f.shim)
		}()
	case container.Run:
		a.state = container.Settle(a.hasRun())
		e.ingest(a)
		go a.runByPolicy()
	case container.Clear:
		e.ingest(a)
		a.before, a.state = container.Dead, container.Removing
		a.shim = f.shim
		go func() {
			if f.shim != nil {
				a.follow(f.shim)
			}
			a.post(func() {
				a.remove(RemoveOptions{Volumes: a.req.HostConfig.AutoRemove || a.spec.RemoveVolumes}, func(error) {})
			})
		}()
	}
	a.publish()
}

func (a *actor) hasRun() bool { return !a.rec.Started.IsZero() }

// adopt takes a shim as it is found and follows it, from when the channel is
// closed.
func (a *actor) adopt(shim Shim) <-chan struct{} {
	followed := make(chan struct{})
	a.bringFiles()
	if shim == nil {
		// Only its process is there: HaltLeft of a container whose shim died.
		a.state = container.Running
		go a.watchProcess(a.rec)
		close(followed)
		return followed
	}
	a.shim = shim
	a.state = stateOf(a.rec)
	if a.rec.Status == proto.StatusExited || a.rec.Status == proto.StatusRemoved {
		// Its last words have yet to be read; they move it on.
		a.state = container.Running
	}
	if a.state.Alive() {
		a.rebindSockets()
	}
	go func() {
		defer close(followed)
		a.follow(shim)
	}()
	return followed
}

// follow takes what a shim that was found has told and will tell. What comes
// before it is lost, so nothing is asked of the shim until it returns.
func (a *actor) follow(shim Shim) {
	err := shim.Subscribe(context.Background(), 0, func(ev proto.Event) {
		a.post(func() { a.replayed(ev) })
	})
	if err != nil {
		a.log.Warn("the shim's journal can't be followed, the shim is looked for again", "error", err)
		shim.Close()
	}
	a.watchShim(shim)
	a.bringNames(shim)
	a.bringPorts(shim)
}

// replayed takes an event that may be of the time before this daemon: those
// are journalled, and only what is newer than the hello moves the state.
func (a *actor) replayed(ev proto.Event) {
	if ev.Seq != 0 && ev.Seq <= a.rec.Seq && ev.Action != proto.ActionExited {
		a.e.record(a, ev.Entry, a.spec.Life)
		return
	}
	a.seen(ev)
}

// watchShim notices a shim that goes without its last words.
func (a *actor) watchShim(shim Shim) {
	go func() {
		<-shim.Done()
		a.post(func() {
			if a.shim != shim {
				return
			}
			a.shim = nil
			switch a.state {
			case container.Removing:
				return // whoever brought it here knows how to go on
			case container.Starting:
				if a.launching {
					return // likewise
				}
			case container.Stopping:
				a.log.Warn("the shim has gone without a word, the stop goes on with a new one")
				a.replace(a.rec)
				return
			}
			a.lostShim()
		})
	}()
}

// lostShim: the shim has gone without its last words, in the loop.
func (a *actor) lostShim() {
	a.log.Warn("the shim has gone without a word")
	a.replacing = true // until it is known what is left
	a.publish()
	go a.retry()
}

// retry asks again about a container that nothing is known of, until something
// is.
func (a *actor) retry() {
	// At once, then soon, then ever more patiently: a shim that was killed is
	// gone in a moment, one that is silent has its reasons.
	var delay time.Duration
	for {
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-a.quit:
			timer.Stop()
			return
		case <-a.e.closing:
			timer.Stop()
			return
		}
		f := a.e.look(context.Background(), a)
		if f.verdict == container.Retry {
			if delay > 0 { // not the moment in which it dies
				a.post(func() {
					if a.replacing {
						a.replacing = false
						a.saw(container.SawLost)
					}
				})
			}
			delay = min(max(delay*2, 5*time.Millisecond), 30*time.Second)
			continue
		}
		if f.verdict == container.HaltLeft {
			// It is this daemon's own by now: it is kept, not stopped.
			f.verdict = container.Adopt
			if f.shim == nil {
				f.verdict = container.Watch
			}
		}
		over := f.verdict == container.Keep || f.verdict == container.Run
		if over {
			a.await(func() { a.returning = true })
		}
		v := a.view.Load()
		if over {
			a.e.giveBack(a.id, v.sandbox, v.mounts)
		}
		var none sync.WaitGroup
		a.post(func() {
			a.returning = false
			if a.state != container.Unknown && !a.replacing {
				if f.shim != nil {
					f.shim.Close()
				}
				a.unpark()
				return
			}
			a.replacing = false
			a.e.apply(a, f, &none)
			if over {
				a.e.emitGivenBack(a.id, v.sandbox, v.mounts)
				a.tell(a.rec)
			}
			a.unpark()
		})
		return
	}
}

// lose records the end of a container that nobody saw. Until finishLost has
// cleared what it left, everybody waits.
func (a *actor) lose() {
	a.state, a.returning = container.Stopping, true
	a.rec.Status, a.rec.Pid = proto.StatusExited, 0
	a.rec.ExitCode = 255
	a.rec.Error = "the exit code is unknown: the container ended together with its shim, by a reboot or by a signal"
	if a.rec.Started.IsZero() {
		a.rec.Started = a.spec.Created
	}
	a.rec.Life = a.spec.Life
	a.rec.Finished = time.Now().UTC()
	a.spec.Failure = &container.Failure{ExitCode: a.rec.ExitCode, Error: a.rec.Error, Time: a.rec.Finished, Lost: true}
}

// finishLost clears what a lost container left, and applies its policy. told
// says that its shim came to tell of the end, and no further.
func (a *actor) finishLost(told bool) {
	if err := a.e.killUnshimmed(a.id); err != nil {
		a.log.Error("what is left of the container can't be cleared", "error", err)
	}
	a.e.giveBack(a.id, a.sandbox, a.mounts)
	failpoint.Here("lose.cleared")
	a.await(func() {
		a.returning = false
		if !told {
			// Before it is recorded, and under a name of its own: should the
			// daemon die in between, the next one tells it no second time.
			at := a.attributes()
			at["exitCode"] = fmt.Sprint(a.rec.ExitCode)
			a.e.append(event.Message{
				Type: "container", Action: proto.ActionDie, Actor: event.Actor{ID: a.id, Attributes: at},
				Source: fmt.Sprintf("%s/%d/lost:1", a.id, a.rec.Life),
			}, a.rec.Finished)
		}
		failpoint.Here("lose.told")
		if a.state != container.Stopping {
			return // a removal has begun meanwhile, and does the rest
		}
		if err := a.save(); err != nil {
			a.log.Error("the lost container could not be recorded", "error", err)
		}
		failpoint.Here("lose.recorded")
		a.tell(a.rec)
		a.to(container.Exited)
		if a.req.HostConfig.AutoRemove {
			a.removeSelf()
			return
		}
		a.byPolicy()
	})
}

// await runs a function in the loop and returns when it has run.
func (a *actor) await(fn func()) {
	ran := make(chan struct{})
	if a.post(func() { defer close(ran); fn() }) {
		<-ran
	}
}

// abort takes back a start that a crash of the daemon interrupted. One that the
// restart policy asks for is begun again.
func (a *actor) abort(shim Shim) {
	if shim != nil {
		// The runtime may be at work by now.
		if err := a.e.putOut(shim, a.spec); err != nil {
			a.log.Warn("the shim of an interrupted start does not leave", "error", err)
		}
		shim.Close()
	}
	if err := a.e.killUnshimmed(a.id); err != nil {
		a.log.Error("what is left of the interrupted start can't be cleared", "error", err)
	}
	a.e.giveBack(a.id, a.sandbox, a.mounts)
	failpoint.Here("abort.cleared")
	a.await(func() {
		again := a.spec.Restart.Name == "always" || a.spec.Restart.Name == "unless-stopped"
		if !again {
			a.spec.Desired = container.DesiredStopped
			if !a.hasRun() {
				a.spec.Desired = container.DesiredCreated
			}
		}
		a.spec.Sandbox, a.sandbox = nil, network.Sandbox{}
		a.spec.Failure = &container.Failure{ExitCode: 128, Error: "the daemon died while it started the container: start it again", Time: time.Now()}
		if err := a.save(); err != nil {
			a.log.Error("the interrupted start could not be recorded", "error", err)
		}
		failpoint.Here("abort.recorded")
		a.to(container.Settle(a.hasRun()))
		switch {
		case a.req.HostConfig.AutoRemove:
			a.removeSelf()
		case again:
			go a.runByPolicy()
		}
	})
}

// byPolicy starts the container if its policy says so, in the loop.
func (a *actor) byPolicy() {
	if a.e.observes.Load() {
		return
	}
	rec := a.exit()
	if container.ShouldRun(a.spec.Restart, a.spec.Desired, a.hasRun(), rec.ExitCode, rec.RestartCount) {
		go a.runByPolicy()
	}
}

func (a *actor) runByPolicy() {
	if err := a.e.ready(context.Background()); err != nil {
		return
	}
	if err := a.start(context.Background()); err != nil && !errors.Is(err, errNothing) {
		a.log.Error("the restart policy's start failed", "error", err)
	}
}

// ingest journals what a shim that is gone has left in its journal. It reports
// whether that ends with the end of a run.
func (e *Engine) ingest(a *actor) (died bool) {
	entries, err := e.shims.Journal(e.store.RunDir(a.id), 0)
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
		e.record(a, entry, a.rec.Life)
	}
	return died
}

// sweepRunDirs removes the run directories of containers that are no more.
func (e *Engine) sweepRunDirs() {
	ids, err := e.store.RunDirs()
	if err != nil {
		e.log.Warn("run directories can't be listed", "error", err)
		return
	}
	for _, id := range ids {
		if e.index.has(id) || slices.Contains(e.unread, id) {
			continue
		}
		if _, err := e.shims.State(e.store.RunDir(id)); err == nil {
			// A shim wrote there and its spec is gone or can't be read: what can't
			// be understood is not destroyed.
			e.log.Warn("a run directory has no container that can be read, it is left alone", "container", id)
			continue
		}
		if err := e.clearRun(id); err != nil {
			e.log.Warn("a run directory without a container is not removed", "container", id, "error", err)
		}
	}
}

// unmount unmounts what the engine has mounted for a container's life.
func (e *Engine) unmount(id string) error {
	for _, path := range []string{e.store.Rootfs(id), e.shmPath(id)} {
		if err := e.images.UnmountRootfs(path); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}

// clearRun unmounts and removes a run directory. It removes nothing while
// something is still mounted there.
func (e *Engine) clearRun(id string) error {
	if err := e.unmount(id); err != nil {
		return err
	}
	return e.store.RemoveRunDir(id)
}

// Shutdown ends the daemon's part. With live restore nothing is touched;
// without it all containers are stopped, each within its own time, all within
// the shutdown time-out.
func (e *Engine) Shutdown(ctx context.Context) {
	e.closeOnce.Do(func() { close(e.closing) })
	cfg := e.config.Load()
	if cfg.LiveRestore {
		return
	}
	limit := time.Duration(cfg.ShutdownTimeout) * time.Second
	actors := e.index.all()
	for _, a := range actors {
		// A container's own longer time-out prolongs the whole, as in Docker.
		if t := a.view.Load().spec.StopTimeout; t != nil {
			if *t < 0 {
				limit = -1
			} else if own := time.Duration(*t+5) * time.Second; limit >= 0 && own > limit {
				limit = own
			}
		}
	}
	if limit >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	var wg sync.WaitGroup
	for _, a := range actors {
		if !a.view.Load().state.Alive() {
			continue
		}
		wg.Go(func() {
			err := a.stop(ctx, StopOptions{}, false)
			if errors.Is(err, context.DeadlineExceeded) {
				err = a.killNow()
			}
			if err != nil && !errors.Is(err, errNothing) {
				a.log.Warn("not stopped at shutdown", "error", err)
			}
		})
	}
	wg.Wait()
}

// killNow kills a container whose stop has taken all the time that there was,
// and waits until it has ended.
func (a *actor) killNow() error {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	a.log.Warn("the shutdown time-out is over, the container is killed")
	err := a.ask(ctx, container.AskKill, func(_ container.Action, done func(error)) {
		shim := a.shim
		if shim == nil {
			done(a.signalUnshimmed(syscall.SIGKILL))
			return
		}
		go func() { done(shim.Kill(ctx, proto.Kill{Signal: int(syscall.SIGKILL)})) }()
	})
	if err != nil {
		return err
	}
	return a.stop(ctx, StopOptions{}, false)
}

// entrySource names a shim's journal entry, so that it is journalled once.
func entrySource(id string, life, seq uint64) string {
	return fmt.Sprintf("%s/%d:%d", id, life, seq)
}

type shimEntry = proto.Entry
