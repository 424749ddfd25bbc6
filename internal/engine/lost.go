// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/container"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// search begins to observe what is left of a container whose shim has gone without
// reporting an end, in the loop.
func (r *restorer) search(a *actor) {
	a.log.Warn("the shim has gone without reporting an end")
	go r.observeUntilKnown(a)
}

// observeUntilKnown observes a container until its state is known. Backoff: 0, 5 ms,
// doubling to 30 s. A shim that was killed is gone after a moment; a shim that does
// not answer may be stopped for a long time.
func (r *restorer) observeUntilKnown(a *actor) {
	first := true
	for wait := (backoff{0, retryMost}); wait.wait(a); first = false {
		f := r.observe(context.Background(), a)
		if f.verdict != container.Retry {
			a.post(func() { r.applyObservation(a, f) })
			return
		}
		if !first { // at the first attempt the shim may just be dying
			a.post(func() { a.step(container.SawSilence) })
		}
		wait.next = max(wait.next, retryFirst)
	}
}

// applyObservation applies an observation of a container whose state was not known,
// in the loop.
func (r *restorer) applyObservation(a *actor, f found) {
	if !a.phase.Lost() {
		if f.shim != nil {
			f.shim.Close()
		}
		return
	}
	if r.observes.Load() && f.verdict == container.Lose && f.rec.Pid != 0 {
		f.seen.Process = true // it may yet be found how it has ended, see watchObserved
	}
	switch f.verdict {
	case container.HaltLeft:
		// Without live restore only containers of an earlier daemon are stopped, and
		// this one belongs to this daemon: it is adopted.
		f.verdict = container.Adopt
		if f.shim == nil {
			f.verdict = container.Watch
		}
	case container.Keep, container.Run:
		r.applyRecordedEnd(a, f)
		return
	}
	var none sync.WaitGroup
	r.apply(a, f, &none)
	a.unpark()
}

// applyRecordedEnd handles a shim that has gone after it recorded the end of the last
// run, but before it reported the end.
func (r *restorer) applyRecordedEnd(a *actor, f found) {
	a.step(container.SawEndUnseen)
	sandbox, mounts := a.sandbox, a.mounts
	go func() {
		r.clearEnded(a)
		a.effects.giveBack(a.id, sandbox, mounts)
		a.post(func() {
			if a.phase.State != container.Ending {
				// A removal has begun meanwhile and does the rest, or the container did not
				// run.
				a.rec = f.rec
				r.ingest(a)
				a.publish()
				a.unpark()
				return
			}
			var none sync.WaitGroup
			r.apply(a, f, &none)
			r.journal.givenBack(a.id, sandbox, mounts)
			a.waiters.ended(a.rec)
			a.unpark()
		})
	}()
}

// clearEnded deletes a container in the OCI runtime whose shim has gone after it recorded
// the end. A shim records the end while the runtime deletes the container, so it may have
// been killed before that was done.
func (r *restorer) clearEnded(a *actor) {
	if err := a.effects.killUnshimmed(a.id); err != nil {
		a.log.Error("the remains of the container could not be cleared", "error", err)
	}
}

// recordLostEnd records the end of a container that no process observed. Requests
// wait until clearLost has cleared what the container left. journalled means that the
// shim has journalled the end, so that its event exists.
func (a *actor) recordLostEnd(journalled bool) {
	a.ending.lost = !journalled
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

// losses handles ends that no shim has reported.
type losses struct {
	scheduler *scheduler
}

// clearLost clears what a lost container left, and applies its restart policy.
func (l *losses) clearLost(a *actor) {
	if err := a.effects.killUnshimmed(a.id); err != nil {
		a.log.Error("the remains of the container could not be cleared", "error", err)
	}
	a.effects.giveBack(a.id, a.sandbox, a.mounts)
	failpoint.Here("lose.cleared")
	a.await(func() {
		// The event is sent before the end is recorded, with a source that identifies
		// it: if the daemon dies in between, the next one does not send it a second
		// time.
		a.journalDeath()
		failpoint.Here("lose.told")
		o := a.phase.Step(container.SawGivenBack, a.facts())
		if o.Next.State != container.Exited {
			return // a removal has begun meanwhile and does the rest
		}
		if err := a.save(); err != nil {
			a.log.Error("the end of the container could not be recorded", "error", err)
		}
		failpoint.Here("lose.recorded")
		a.waiters.ended(a.rec)
		a.enter(o.Next)
		a.unpark()
		a.carryOut(o)
		if o.Do == container.Accept {
			l.scheduler.startByPolicy(a, container.Living)
		}
	})
}

// abort rolls back a start that a crash of the daemon interrupted, or that has failed
// while there was no daemon. If it was interrupted, and the container's restart policy
// is always or unless-stopped, the container is started again.
func (r *restorer) abort(a *actor, f found) {
	stopped := false
	if f.shim != nil {
		// The shim may have called the runtime meanwhile.
		err := a.effects.stopShim(f.shim, a.spec)
		if stopped = err == nil; !stopped {
			a.log.Warn("the shim of an interrupted start could not be stopped", "error", err)
		}
		f.shim.Close()
	}
	if err := a.effects.killUnshimmed(a.id); err != nil {
		a.log.Error("the remains of the interrupted start could not be cleared", "error", err)
	}
	a.effects.giveBack(a.id, a.sandbox, a.mounts)
	failpoint.Here("abort.cleared")
	a.await(func() {
		failed := f.seen.Record == container.RecordFailed
		again := !failed && (a.spec.Restart.Name == "always" || a.spec.Restart.Name == "unless-stopped")
		if !again {
			a.spec.Desired = container.DesiredStopped
			if !a.hasRun() {
				a.spec.Desired = container.DesiredCreated
			}
		}
		a.spec.Sandbox, a.sandbox = nil, network.Sandbox{}
		a.spec.Failure = &container.Failure{ExitCode: 128, Error: "the daemon died while it started the container: start it again", Time: time.Now()}
		// The start may have succeeded meanwhile, and the container was then stopped: its
		// shim has journalled both. With --rm the shim of a start that has failed may have
		// removed the container, and journalled that.
		if stopped || failed {
			r.ingest(a)
		}
		if failed {
			a.rec, _ = r.records.last(&a.spec, r.records.read(&a.spec))
			a.spec.Failure = &container.Failure{ExitCode: f.rec.ExitCode, Error: f.rec.Error, Time: f.rec.Finished}
		}
		if err := a.save(); err != nil {
			a.log.Error("the interrupted start could not be recorded", "error", err)
		}
		failpoint.Here("abort.recorded")
		o := a.step(container.SawStartFailed)
		a.waiters.notRunning(a.exit())
		a.carryOut(o)
		if again && o.Do == container.Accept {
			r.scheduler.scheduleStart(a)
		}
	})
}

// watchProcess waits for the end of a container's process that has no shim.
func (l *losses) watchProcess(a *actor, rec proto.State) {
	awaitProcess(rec)
	a.post(func() {
		if !a.e.retired.Load() { // else the successor finds out how it has ended
			l.endUnseen(a)
		}
	})
}

// endUnseen handles the end of a container that no shim has reported, in the loop.
func (l *losses) endUnseen(a *actor) {
	if o := a.step(container.SawEndUnseen); o.Do == container.GiveBack {
		a.recordLostEnd(false)
		a.publish()
		go l.clearLost(a)
	}
}

// awaitProcess waits for the end of a container's process.
func awaitProcess(rec proto.State) {
	fd, err := unix.PidfdOpen(rec.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return
	}
	if !alive(rec) {
		unix.Close(fd)
		return
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	// A pidfd is readable once its process has ended. raw.Read only waits for that.
	raw, _ := f.SyscallConn()
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}
