// SPDX-License-Identifier: Apache-2.0

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
	"holdfast/internal/engine/namefiles"
	"holdfast/internal/errs"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// request is the API request that created a container, with the image's defaults
// merged in. Spec.API stores it.
type request struct {
	Config     *moby.Config
	HostConfig *moby.HostConfig
	Networking *mobynet.NetworkingConfig `json:",omitempty"`
	// Only: Networking names all networks of the container, and
	// HostConfig.NetworkMode adds none. Without it, as in earlier releases, the
	// container joins both.
	Only bool `json:",omitempty"`
	// Fixed is nil in requests of early releases, see Config.fixedOf.
	Fixed *fixedOptions `json:"Kept,omitempty"`
}

// view is a snapshot of a container for readers. It is consistent and immutable.
type view struct {
	spec    container.Spec
	req     request
	mounts  []mountPoint
	sandbox network.Sandbox
	state   container.State
	rec     proto.State
	ran     proto.State     // see actor
	shim    Shim            // nil if none is connected
	halting bool            // a stop is under way
	due     <-chan struct{} // closed when the start by the restart policy is over; nil if none is due
	places  []namefiles.Place
	linked  []netip.Addr // the addresses that links of the default network lead to

	listed atomic.Pointer[listed] // see summary
}

// hasRun reports whether the container's process ever ran.
func (v *view) hasRun() bool { return !v.rec.Started.IsZero() }

// actor is one container. Only its loop changes it: every request and every
// observation reaches the loop as a function in mail. What takes time runs in
// another goroutine, which reports back through mail.
type actor struct {
	e       *Engine
	id      string
	log     *slog.Logger
	effects effects

	*loop
	view atomic.Pointer[view] // the last published snapshot

	// Only the loop accesses the fields below.
	spec    container.Spec
	req     request
	mounts  []mountPoint
	sandbox network.Sandbox
	phase   container.Phase // changed by enter alone
	rec     proto.State     // the shim's last known record, of this life or the last one
	ran     proto.State     // the last record with a process, for as long as the end of that run is not shown
	shim    Shim            // nil unless the phase is Linked
	ending  ending
	waiters waiters
	clients []attachment  // attached before the start
	halts   []*halting    // stops that are under way
	lags    []*lag        // what the shim has answered clients, and the daemon does not know yet
	due     chan struct{} // closed when the start by the restart policy is over; nil if none is due
	// descriptors has its own lock.
	descriptors descriptors
}

// attachment is a client that attached before the container ran.
type attachment struct {
	attach proto.Attach
	client *Client
}

func newActor(e *Engine, spec *container.Spec, d asked) *actor {
	a := &actor{
		e: e, id: spec.ID,
		log:     e.log.With("container", spec.ID[:12]),
		effects: e.effects,
		loop:    newLoop(),
		spec:    *spec, req: d.req, mounts: d.mounts, sandbox: d.sandbox,
		descriptors: descriptors{id: spec.ID, log: e.log.With("container", spec.ID[:12]), runDir: e.store.RunDir, keeper: e.activeKeeper},
	}
	a.publish()
	return a
}

// publish makes a snapshot of the container's present state the one that readers
// see.
func (a *actor) publish() {
	shim := a.shim
	if a.e.observes.Load() {
		shim = nil
	}
	a.descriptors.update(a.rec, shim, a.req.Config)
	switch {
	case a.rec.Pid != 0:
		a.ran = a.rec
	case !a.phase.State.Alive() || a.rec.Status == proto.StatusRestarting:
		a.ran = proto.State{}
	}
	v := &view{spec: a.spec, req: a.req, mounts: a.mounts, sandbox: a.sandbox, state: a.phase.State, rec: a.rec, ran: a.ran, shim: a.shim, halting: len(a.halts) > 0, due: a.due}
	v.places = placesOf(a.e.networks, v)
	v.linked = linkedAt(v)
	before := a.view.Swap(v)
	a.lags = slices.DeleteFunc(a.lags, func(l *lag) bool { return l.over(a) })
	if len(v.req.HostConfig.Links) > 0 {
		a.e.index.links.Store(true)
	}
	if len(v.linked) > 0 && (before == nil || !slices.Equal(before.linked, v.linked)) {
		a.e.names.relink(a)
	}
	if before != nil && !reflect.DeepEqual(before.places, v.places) {
		a.e.names.update()
	}
}

// enter sets the phase and publishes it. Nothing else changes the phase.
func (a *actor) enter(p container.Phase) {
	if p.Link != container.Linked {
		a.shim = nil
	}
	a.phase = p
	a.publish()
}

// step applies an input to the lifecycle, and retries the parked inputs if the
// phase has changed. The caller carries out the outcome's action.
func (a *actor) step(in container.Input) container.Outcome {
	before := a.phase
	o := before.Step(in, a.facts())
	a.enter(o.Next)
	if o.Next != before {
		a.unpark()
	}
	return o
}

func (a *actor) facts() container.Facts {
	return container.Facts{HasRun: a.hasRun(), AutoRemove: a.req.HostConfig.AutoRemove}
}

// ask applies a request to the lifecycle, in the loop, and calls act with the
// action that Step returns. act reports the result by calling done, from any
// goroutine; only the first call counts. The context ends the waiting, not the
// effect.
func (a *actor) ask(ctx context.Context, in container.Input, act func(do container.Action, done func(error))) error {
	result := make(chan error, 1)
	done := func(err error) {
		select {
		case result <- err:
		default: // already answered; the loop must not block
		}
	}
	var begun atomic.Bool
	var try func()
	try = func() {
		if ctx.Err() != nil {
			return // the caller has gone, and nothing was begun
		}
		o := a.phase.Step(in, a.facts())
		switch o.Do {
		case container.Wait:
			a.parked = append(a.parked, try)
		case container.Nothing:
			done(errNothing)
		case container.Refuse:
			done(a.refusal(in, o.Why))
		default:
			begun.Store(true)
			a.enter(o.Next)
			act(o.Do, done)
		}
	}
	if !a.post(try) {
		return errs.NotFound("No such container: %s", a.id)
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
		}
		if begun.Load() && (in == container.AskKill || in == container.AskStop) {
			return nil // it has ended as requested, and --rm was faster than the answer
		}
		return errs.NotFound("No such container: %s", a.id)
	}
}

// refusal is the error for a refused request, worded as in Docker.
func (a *actor) refusal(in container.Input, why string) error {
	if a.phase.State == container.Unknown {
		return errs.Unavailable("container %s %s", a.spec.Name, why)
	}
	switch in {
	case container.AskRemove:
		if a.phase.State == container.Removing {
			return errs.Conflict("removal of container %s is already in progress", a.spec.Name)
		}
		return errs.Conflict("cannot remove container %q: container %s", a.spec.Name, why)
	case container.AskForceRemove:
		return errs.Conflict("removal of container %s is already in progress", a.spec.Name)
	case container.AskKill:
		return errs.Conflict("cannot kill container: %s: container %s %s", a.spec.Name, a.id, why)
	case container.AskUnpause:
		return errs.Conflict("Container %s %s", a.id, why)
	case container.AskExec:
		if a.phase.State == container.Paused {
			return errs.Conflict("Container %s %s", a.spec.Name, why)
		}
	}
	return errs.Conflict("container %s %s", a.id, why)
}

// carryOut performs the action that follows from an observation, in the loop.
func (a *actor) carryOut(o container.Outcome) {
	switch o.Do {
	case container.GiveBack:
		a.giveBack()
	case container.Search:
		a.e.restorer.search(a)
	case container.AutoRemove:
		a.removeSelf()
	}
}

// removeSelf carries out --rm, in the loop.
func (a *actor) removeSelf() {
	if a.e.observes.Load() {
		if !a.e.retired.Load() { // a retired engine learns of the successor's removal from the journal
			a.e.restorer.forget(a)
		}
		return
	}
	switch a.phase.Step(container.AskRemove, a.facts()).Do {
	case container.Wait: // a request uses the container's files
		a.parked = append(a.parked, a.removeSelf)
	case container.Remove:
		a.remove(RemoveOptions{Volumes: true}, func(err error) {
			if err != nil {
				a.log.Error("automatic removal failed, the next start of the daemon retries it", "error", err)
			}
		})
	}
}

// save persists the spec, in the loop. An observer leaves that to the next daemon,
// which finds in the shim's record what the user requested.
func (a *actor) save() error {
	if a.e.observes.Load() {
		return nil
	}
	return a.e.store.WriteSpec(&a.spec)
}

// saveEnding is save before a stop or a removal. A full disk must not prevent what
// frees space, so the container is then stopped or removed without a record. If
// the daemon dies meanwhile, the user has to repeat the request. A container can be
// stopped although the disk has failed, too.
func (a *actor) saveEnding(stop bool) error {
	err := a.save()
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		a.log.Warn("the disk is full: the container is stopped or removed without a record of it", "error", err)
	case stop && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS)):
		a.log.Warn("the disk has failed: the container is stopped without a record of it", "error", err)
	default:
		return err
	}
	return nil
}

// attributesOf returns the attributes that every event of a container has.
func attributesOf(spec container.Spec, req request) map[string]string {
	at := make(map[string]string, len(req.Config.Labels)+2)
	for k, v := range req.Config.Labels {
		at[k] = v
	}
	at["name"] = spec.Name
	at["image"] = req.Config.Image
	return at
}

// emit journals an event for something that the daemon did to the container.
func (a *actor) emit(action string, extra map[string]string) {
	at := attributesOf(a.spec, a.req)
	for k, v := range extra {
		at[k] = v
	}
	a.e.journal.emit("container", action, a.id, at, time.Now())
}

func (a *actor) hasRun() bool { return !a.rec.Started.IsZero() }
