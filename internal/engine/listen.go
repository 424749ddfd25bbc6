// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"

	"holdfast/internal/container"
	"holdfast/internal/event"
	"holdfast/internal/failpoint"
	"holdfast/internal/shim/proto"
)

// receive handles a report of a shim with take, in the actor's loop, and acknowledges it.
func receive(a *actor, shim Shim, ev proto.Event, take func(proto.Event)) {
	a.ending.receive(shim, ev, take, func() uint64 { return a.e.journal.through(a.id, ev.State.Life) })
}

// handleEvent handles a report of the shim. Reports arrive in their order.
func (a *actor) handleEvent(ev proto.Event) {
	if ev.State.Life != a.spec.Life && a.rec.Life == a.spec.Life {
		a.ending.acknowledge()
		return // a late report of an earlier life
	}
	final := ev.Action == proto.ActionDie && ev.State.Status != proto.StatusRestarting
	before := a.phase
	if !outdated(ev.State, a.rec) {
		a.rec = withLastRun(ev.State, &a.spec)
		if in, ok := seen(ev, before.State); ok {
			a.enter(before.Step(in, a.facts()).Next)
		}
	}
	if ev.Seq > 0 && ev.Action != proto.ActionExited && !final {
		a.publish()
		// A client that gets the event finds the container in the state that the event
		// reports. And it is journalled before any client is answered, so that a client
		// that has its answer finds the event.
		a.e.journal.record(a, ev.Entry, ev.State.Life)
	}
	switch {
	case final:
		// Clients often remove the container on the event "die", so it is sent only
		// when a removal can succeed. If the daemon dies before that, the next daemon
		// finds the entry in the shim's journal.
		a.ending.death = &ev.Entry
	case ev.Action == proto.ActionDie:
		a.waiters.ended(ev.State)
	case ev.Action == proto.ActionExited:
		a.recordUserStop()
		a.ended(recordOf(ev.State))
	}
	if a.phase != before {
		a.unpark()
	}
	a.effects.readyToRestart(a.phase.State, a.spec)
	a.publish()
}

// outdated reports whether the state of a report is older than the one on record. The
// answer to a call has the shim's state, too, and may be handled before reports that the
// shim has sent earlier.
func outdated(reported, recorded proto.State) bool {
	return reported.Life == recorded.Life && reported.Seq < recorded.Seq
}

// seen is what a report says of the container's state, which is now state; false if
// the report changes nothing, or is the last one.
func seen(ev proto.Event, state container.State) (container.Input, bool) {
	switch {
	case ev.Action == proto.ActionStart:
		return container.SawRunning, true
	case ev.Action == proto.ActionExited, ev.Action == proto.ActionDie && ev.State.Status != proto.StatusRestarting:
		return 0, false
	}
	switch ev.State.Status {
	case proto.StatusRestarting:
		return container.SawRestarting, true
	case proto.StatusPaused:
		return container.SawPaused, true
	case proto.StatusRunning:
		return container.SawRunning, state == container.Paused
	}
	return 0, false
}

// ended handles the shim's last report of this life. What the container used is given
// back, and --rm is carried out.
func (a *actor) ended(r container.Record) {
	in := container.SawEnded
	if r == container.RecordFailed {
		in = container.SawFailed
	}
	o := a.phase.Step(in, a.facts())
	a.enter(o.Next)
	if in == container.SawFailed && o.Next.Attempt == container.NoAttempt && o.Do != container.GiveBack {
		// An observer saw a start of the last daemon, which rolls nothing back.
		a.ending.acknowledge()
		a.waiters.notRunning(a.exit())
	}
	a.carryOut(o)
}

// giveBack releases what the last run used, outside the loop. In the state Ending no
// start may begin until that is done. The shim has released everything by now; it
// exits when its last report is acknowledged and its clients have read all output.
func (a *actor) giveBack() {
	sandbox, mounts := a.sandbox, a.mounts
	if a.phase.State != container.Ending { // a removal is under way and does the rest
		a.journalDeath()
		a.unpark() // retries the requests that wait for the end
		go func() {
			a.effects.giveBack(a.id, sandbox, mounts)
			a.post(a.ending.acknowledge)
		}()
		return
	}
	a.unpark()
	go func() {
		failpoint.Here("end.seen")
		a.effects.giveBack(a.id, sandbox, mounts)
		failpoint.Here("end.gave-back")
		a.post(func() {
			o := a.phase.Step(container.SawGivenBack, a.facts())
			a.enter(o.Next)
			a.journalDeath()
			failpoint.Here("end.told")
			a.e.journal.givenBack(a.id, sandbox, mounts)
			a.ending.acknowledge()
			if o.Next.State != container.Exited {
				return // a removal has begun meanwhile and does the rest
			}
			a.waiters.ended(a.rec)
			a.unpark()
			a.carryOut(o)
		})
	}()
}

// journalDeath journals the end of the last run.
func (a *actor) journalDeath() {
	if a.ending.death != nil {
		a.e.journal.record(a, *a.ending.death, a.rec.Life)
		a.ending.death = nil
	}
	if a.ending.lost {
		at := attributesOf(a.spec, a.req)
		at["exitCode"] = fmt.Sprint(a.rec.ExitCode)
		a.e.journal.append(event.Message{
			Type: "container", Action: proto.ActionDie, Actor: event.Actor{ID: a.id, Attributes: at},
			Source: fmt.Sprintf("%s/%d/lost:1", a.id, a.rec.Life),
		}, a.rec.Finished)
		a.ending.lost = false
	}
}

// handleReplayed handles a report that may be older than this daemon. A report that
// is not newer than the shim's Hello is only journalled; it does not change the
// state.
func (a *actor) handleReplayed(ev proto.Event) {
	if ev.Seq != 0 && ev.Seq <= a.rec.Seq && ev.Action != proto.ActionExited {
		a.e.journal.record(a, ev.Entry, a.spec.Life)
		return
	}
	a.handleEvent(ev)
}

// watchShim watches for the end of the connection to a shim.
func (a *actor) watchShim(shim Shim) {
	go func() {
		<-shim.Done()
		a.post(func() {
			if a.shim == shim {
				a.carryOut(a.step(container.SawShimGone))
			}
		})
	}()
}
