package engine

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"holdfast/internal/container"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// request is the container as it was asked for, with the image's defaults
// merged in: what Spec.API holds.
type request struct {
	Config     *moby.Config
	HostConfig *moby.HostConfig
	Networking *mobynet.NetworkingConfig `json:",omitempty"`
	Kept       *kept                     `json:",omitempty"` // nil: see Config.of
	// ImageEnv and so on are not kept: an image may go, the container stays.
}

// view is a container as readers see it: a consistent picture that never
// changes once it is published.
type view struct {
	spec    container.Spec
	req     request
	mounts  []mountPoint
	sandbox network.Sandbox
	state   container.State
	rec     proto.State
	shim    Shim // for asking it; nil when there is none
	places  []place
	linked  []netip.Addr // where links of the default network lead

	listed atomic.Pointer[listed] // see summary
}

// hasRun reports whether the container's process ever ran.
func (v *view) hasRun() bool { return !v.rec.Started.IsZero() }

// actor is one container. Its loop is the only one that changes it: everything
// that is asked of the container or seen of it passes through mail as a
// function, and what takes time runs outside and reports back through mail.
type actor struct {
	e   *Engine
	id  string
	log *slog.Logger

	mail *mailbox
	quit chan struct{}        // closed, by the loop, when the container is gone
	view atomic.Pointer[view] // the last published picture

	// All below belongs to the loop.
	spec    container.Spec
	req     request
	mounts  []mountPoint
	sandbox network.Sandbox
	state   container.State
	rec     proto.State     // the last seen of the shim, of this life or the last
	shim    Shim            // nil when there is none
	before  container.State // that the last accepted input led away from
	parked  []func()        // inputs that wait for the present state to pass
	// returning: what the last run used of the host is being given back, with
	// the sandbox as it was when that began.
	returning bool
	waiters   []waiter
	clients   []attachment // attached before the start
	// death is the end of the last run, until it is journalled.
	death *proto.Entry
	// restarts counts the restarts asked by users that are under way: between
	// the stop and the start --rm does not strike.
	restarts int
	// launching: a start is under way, which takes back what it did if it
	// fails. endedAtOnce: the shim told of the end before the start returned.
	launching, endedAtOnce bool
	// replacing: a shim that was killed gets a successor, and what is asked
	// waits for it. halting is how a stop that is under way was asked for.
	replacing bool
	halting   proto.Stop
	// committing: a commit is under way that freezes the container.
	committing bool
	// lent counts those who work on the container's files, see borrow.
	lent int
	held held // has a lock of its own
}

// waiter waits for the end of a run, or for the removal.
type waiter struct {
	on  moby.WaitCondition
	ch  chan moby.WaitResponse // buffered
	ctx context.Context        // of who waits
	// held is the client, where a shim can answer it; nil otherwise.
	held *heldWait
}

// attachment is a client that came before the container ran.
type attachment struct {
	attach proto.Attach
	client *Client
}

func newActor(e *Engine, spec *container.Spec, d asked) *actor {
	a := &actor{
		e: e, id: spec.ID,
		log:  e.log.With("container", spec.ID[:12]),
		mail: newMailbox(),
		quit: make(chan struct{}),
		spec: *spec, req: d.req, mounts: d.mounts, sandbox: d.sandbox,
	}
	a.publish()
	return a
}

// loop runs until the container is gone, and answers all that came before.
func (a *actor) loop() {
	for {
		for _, fn := range a.mail.take() {
			fn()
		}
		select {
		case <-a.quit:
			if a.mail.close() {
				return
			}
		default:
			<-a.mail.wake
		}
	}
}

// post hands a function to the loop, and never waits for it. After the
// container is gone it does nothing and says so.
func (a *actor) post(fn func()) bool { return a.mail.put(fn) }

// gone reports whether the container is no more, in the loop.
func (a *actor) gone() bool {
	select {
	case <-a.quit:
		return true
	default:
		return false
	}
}

// publish makes the present picture the one that readers see.
func (a *actor) publish() {
	a.hold()
	v := &view{spec: a.spec, req: a.req, mounts: a.mounts, sandbox: a.sandbox, state: a.state, rec: a.rec, shim: a.shim}
	v.places = a.e.placesOf(v)
	v.linked = linkedAt(v)
	before := a.view.Swap(v)
	if len(v.req.HostConfig.Links) > 0 {
		a.e.links.Store(true)
	}
	if len(v.linked) > 0 && (before == nil || !slices.Equal(before.linked, v.linked)) {
		a.e.relink(a)
	}
	if before != nil && !reflect.DeepEqual(before.places, v.places) {
		a.e.updateNames()
	}
}

// to moves to a state and asks again what waited for this.
func (a *actor) to(s container.State) {
	moved := a.state != s
	a.state = s
	a.publish()
	if s == container.Paused && a.spec.Committing && !a.committing && !a.e.observes.Load() {
		// Frozen by a commit that no daemon knows any more.
		a.committing = true
		go a.thawAfterCommit()
	}
	if moved {
		a.unpark()
	}
}

// unpark asks again what waited for the last state to pass.
func (a *actor) unpark() {
	parked := a.parked
	a.parked = nil
	for _, again := range parked {
		again()
	}
}

// saw takes an observation through the lifecycle.
func (a *actor) saw(in container.Input) {
	o := container.Step(a.state, in)
	if in == container.SawStartFailed && o.Next == container.Exited {
		o.Next = container.Settle(!a.rec.Started.IsZero())
	}
	a.to(o.Next)
}

// ask brings a user's input before the loop, and act carries out what Step
// says. act calls done from wherever it ends, and the first answer counts. The
// context ends the waiting; the effect goes on.
func (a *actor) ask(ctx context.Context, in container.Input, act func(do container.Action, done func(error))) error {
	result := make(chan error, 1)
	done := func(err error) {
		select {
		case result <- err:
		default: // answered before, which must not hold up the loop
		}
	}
	var try func()
	try = func() {
		if ctx.Err() != nil {
			return // nobody waits, and nothing was begun
		}
		if a.replacing || a.lentAgainst(in) {
			a.parked = append(a.parked, try)
			return
		}
		o := container.Step(a.state, in)
		switch o.Do {
		case container.Wait:
			a.parked = append(a.parked, try)
		case container.Nothing:
			done(errNothing)
		case container.Refuse:
			done(a.refusal(in, o.Why))
		default:
			a.before = a.state
			a.to(o.Next)
			act(o.Do, done)
		}
	}
	if !a.post(try) {
		return notFound("No such container: %s", a.id)
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-a.quit:
		select {
		case err := <-result:
			return err
		default:
			return notFound("No such container: %s", a.id)
		}
	}
}

// refusal is the sentence for a refused input.
func (a *actor) refusal(in container.Input, why string) error {
	if a.state == container.Unknown {
		return unavailable("container %s %s", a.spec.Name, why)
	}
	switch in {
	case container.AskRemove:
		if a.state == container.Removing {
			return conflict("removal of container %s is already in progress", a.spec.Name)
		}
		return conflict("cannot remove container %q: container %s", "/"+a.spec.Name, why)
	case container.AskForceRemove:
		return conflict("removal of container %s is already in progress", a.spec.Name)
	case container.AskKill:
		return conflict("cannot kill container: %s: container %s %s", a.spec.Name, a.id, why)
	}
	return conflict("container %s %s", a.id, why)
}

// seen takes what the shim tells. The shim's events come in their order.
func (a *actor) seen(ev proto.Event) {
	if ev.State.Life != a.spec.Life && a.rec.Life == a.spec.Life {
		return // a word of an earlier life, late
	}
	a.rec = ev.State
	final := ev.Action == proto.ActionDie && ev.State.Status != proto.StatusRestarting
	if ev.Seq > 0 && ev.Action != proto.ActionExited && !final {
		// Before anybody is told: who has an answer finds the event.
		a.e.record(a, ev.Entry, ev.State.Life)
	}
	switch ev.Action {
	case proto.ActionStart:
		a.saw(container.SawRunning)
	case proto.ActionDie:
		if final {
			// Who reads of the death may remove the container at once: it is told
			// when that is possible. Should the daemon die before, the next one
			// finds it in the shim's journal.
			a.death = &ev.Entry
			break
		}
		a.tell(ev.State)
		a.saw(container.SawRestarting)
	case proto.ActionExited:
		a.heed()
		a.ended()
	default:
		switch ev.State.Status {
		case proto.StatusRestarting:
			a.saw(container.SawRestarting)
		case proto.StatusPaused:
			a.saw(container.SawPaused)
		case proto.StatusRunning:
			if a.state == container.Paused {
				a.saw(container.SawRunning)
			}
		}
	}
	a.publish()
}

// tell answers those who wait for the end of a run.
func (a *actor) tell(rec proto.State) {
	a.waiters = slices.DeleteFunc(a.waiters, func(w waiter) bool {
		if w.on == moby.WaitConditionRemoved {
			return false
		}
		w.ch <- waitResponse(rec)
		return true
	})
}

// notRunning answers those who wait for a container that came not to run.
func (a *actor) notRunning() {
	a.waiters = slices.DeleteFunc(a.waiters, func(w waiter) bool {
		if w.on != moby.WaitConditionNotRunning {
			return false
		}
		w.ch <- waitResponse(a.exit())
		return true
	})
}

// waitResponse tells the exit code. The API's Error is for waits that failed,
// not for containers that did.
func waitResponse(rec proto.State) moby.WaitResponse {
	return moby.WaitResponse{StatusCode: int64(rec.ExitCode)}
}

// ended: no run of this life follows. What the container used is given back,
// and --rm is carried out.
func (a *actor) ended() {
	if a.launching {
		a.endedAtOnce = true // the start's own undoing, or the end after it
		return
	}
	shim, sandbox, mounts := a.shim, a.sandbox, a.mounts
	a.shim = nil
	rm := a.req.HostConfig.AutoRemove && a.restarts == 0 && a.state != container.Removing
	if a.state == container.Removing || a.state == container.Dead {
		a.tellDeath()
		return // the removal does the rest
	}
	// Until the shim is gone and the network is given back nothing may start
	// again: Stopping makes the inputs wait.
	a.returning = true
	a.to(container.Stopping)
	go func() {
		if shim != nil {
			<-shim.Done()
		}
		failpoint.Here("end.seen")
		a.e.giveBack(a.id, sandbox, mounts)
		failpoint.Here("end.gave-back")
		a.post(func() {
			a.returning = false
			if a.state != container.Stopping {
				a.tellDeath()
				a.e.emitGivenBack(a.id, sandbox, mounts)
				return
			}
			a.state = container.Step(a.state, container.SawExited).Next
			a.publish()
			a.tellDeath()
			failpoint.Here("end.told")
			a.e.emitGivenBack(a.id, sandbox, mounts)
			a.tell(a.rec)
			a.unpark()
			if rm {
				a.removeSelf()
			}
		})
	}()
}

// tellDeath journals the end of the last run.
func (a *actor) tellDeath() {
	if a.death != nil {
		a.e.record(a, *a.death, a.rec.Life)
		a.death = nil
	}
}

// removeSelf carries out --rm, in the loop.
func (a *actor) removeSelf() {
	if a.e.observes.Load() {
		if !a.e.retired.Load() { // a successor's removal is told by the journal
			a.vanish()
		}
		return
	}
	o := container.Step(a.state, container.AskRemove)
	if o.Do != container.Remove {
		return
	}
	a.before = a.state
	a.to(o.Next)
	a.remove(RemoveOptions{Volumes: true}, func(err error) {
		if err != nil {
			a.log.Error("automatic removal failed, it is tried again at the next start", "error", err)
		}
	})
}

// save persists the spec as it is now, in the loop. An observer leaves that to
// the next daemon, which finds in the shim's record what the user wanted.
func (a *actor) save() error {
	if a.e.observes.Load() {
		return nil
	}
	return a.e.store.WriteSpec(&a.spec)
}

// saveEnding is save before the container is stopped or removed. A full disk is
// no reason to refuse what makes room: it is done without a record, and should
// the daemon die meanwhile, the user asks again.
func (a *actor) saveEnding() error {
	err := a.save()
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		a.log.Warn("the disk is full: the container is stopped or removed without a record of it", "error", err)
		return nil
	}
	return err
}

// attributes are what every event of the container carries.
func (a *actor) attributes() map[string]string {
	at := make(map[string]string, len(a.req.Config.Labels)+2)
	for k, v := range a.req.Config.Labels {
		at[k] = v
	}
	at["name"] = a.spec.Name
	at["image"] = a.req.Config.Image
	return at
}

// emit journals something that the daemon did to the container.
func (a *actor) emit(action string, extra map[string]string) {
	at := a.attributes()
	for k, v := range extra {
		at[k] = v
	}
	a.e.emit("container", action, a.id, at, time.Now())
}
