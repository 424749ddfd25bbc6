// SPDX-License-Identifier: Apache-2.0

package engine

import "holdfast/internal/shim/proto"

// acknowledger is implemented by shims that end clients' streams only after the
// daemon has handled the reports up to the sequence number seq, and discard those up
// to kept. Shims of earlier releases do not implement it.
type acknowledger interface{ Heard(seq, kept uint64) }

// ending is what remains to be done about the end of a run when the shim has reported
// it: the event is journalled, and the report acknowledged, only when the next
// request can succeed.
type ending struct {
	// death is the end of the last run. It is nil once it is journalled.
	death *proto.Entry
	// lost: no shim has reported the end of the last run, and its event is not
	// journalled yet.
	lost bool
	// ack acknowledges the shim's last report. It is nil if there is nothing to
	// acknowledge.
	ack func()
	// undone: the start of this life is being rolled back. The rollback waits for the
	// shim to exit, so every report is acknowledged at once.
	undone bool
}

// begin forgets the last life.
func (e *ending) begin() {
	e.acknowledge()
	*e = ending{}
}

// rollBack is called, in the loop, when the start of the present life has failed.
func (e *ending) rollBack() {
	e.undone = true
	e.acknowledge()
}

// receive handles a report of a shim with take, in the loop, and acknowledges it. The
// last report is acknowledged by acknowledge. kept returns the number up to which all
// reports are in the journal of events.
func (e *ending) receive(shim Shim, ev proto.Event, take func(proto.Event), kept func() uint64) {
	to, ok := shim.(acknowledger)
	switch {
	case !ok:
		take(ev)
	case ev.Action == proto.ActionExited:
		e.ack = func() { to.Heard(ev.Seq, 0) }
		take(ev)
		if e.undone {
			e.acknowledge()
		}
	default:
		take(ev)
		if e.death == nil || e.death.Seq != ev.Seq { // otherwise it is acknowledged with the last report
			to.Heard(ev.Seq, kept())
		}
	}
}

// acknowledge acknowledges the shim's last report: from now on every request gets an
// answer that includes the end of the last run.
func (e *ending) acknowledge() {
	if e.ack != nil {
		e.ack()
		e.ack = nil
	}
}
