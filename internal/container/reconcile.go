// SPDX-License-Identifier: Apache-2.0

package container

// ShimSeen is the outcome of an attempt to reach a container's shim.
type ShimSeen uint8

const (
	// ShimNone: no process listens on the shim's socket, and none will.
	ShimNone ShimSeen = iota
	// ShimAnswers: the shim has answered Hello.
	ShimAnswers
	// ShimSilent: the shim may be running, but did not answer in time.
	ShimSilent

	numShimSeen
)

var shimSeenNames = [numShimSeen]string{"no shim", "shim answers", "shim silent"}

func (s ShimSeen) String() string { return shimSeenNames[s] }

// Record is the last status of this life that a shim recorded. The shim reports
// it, or it is read from the shim's files.
type Record uint8

const (
	// RecordNone: there is no record of this life.
	RecordNone Record = iota
	// RecordCreated: the shim has started, and has not called the runtime yet.
	RecordCreated
	// RecordRunning, RecordPaused, RecordRestarting: see the states of these names.
	RecordRunning
	RecordPaused
	RecordRestarting
	// RecordExited: the container has ended and the shim does not restart it. The
	// exit record is exact.
	RecordExited
	// RecordRemoved: the container has ended, and the shim has carried --rm out.
	RecordRemoved
	// RecordFailed: the start of this life has failed, and the container did not run
	// in it. The shim may have carried --rm out.
	RecordFailed

	numRecords
)

var recordNames = [numRecords]string{
	"no record", "created", "running", "paused", "restarting", "exited", "removed", "failed",
}

func (r Record) String() string { return recordNames[r] }

// Alive reports whether the container runs or will run again, according to the
// record.
func (r Record) Alive() bool {
	return r == RecordRunning || r == RecordPaused || r == RecordRestarting
}

// Over reports whether this life is over, according to the record. The shim may not
// have reported that yet.
func (r Record) Over() bool {
	return r == RecordExited || r == RecordRemoved || r == RecordFailed
}

// Observation is what a new daemon found of a container.
type Observation struct {
	Shim   ShimSeen
	Record Record
	// Process: the container's process lives, identified by its pid and start time.
	Process bool
}

// Verdict is what a new daemon does about a container.
type Verdict uint8

const (
	// Keep: leave the container as it is, Created or Exited.
	Keep Verdict = iota
	// Adopt: subscribe to the container's shim.
	Adopt
	// Retry: nothing could be observed, so nothing is changed. Observe again later.
	Retry
	// Watch: the container's process runs without a shim. Start a new shim.
	Watch
	// HaltLeft: live restore is off. Stop the container that a crash of the daemon
	// left running, then apply its restart policy.
	HaltLeft
	// Lose: the container ran, and no process observed its end. It is exited, and
	// its exit code is unknown.
	Lose
	// Abort: roll back a start that a crash interrupted before the container ran, or
	// that has failed while there was no daemon.
	Abort
	// Run: start the container because of its restart policy.
	Run
	// Clear: finish the container's removal.
	Clear

	numVerdicts
)

var verdictNames = [numVerdicts]string{
	"keep", "adopt", "retry", "watch", "halt", "lose", "abort", "run", "clear",
}

func (v Verdict) String() string { return verdictNames[v] }

// Rules are what Reconcile needs to know of what is desired of a container.
type Rules struct {
	Desired     Desired
	LiveRestore bool
	// AutoRemove: --rm.
	AutoRemove bool
	// Restart: the restart policy asks for another run after the observed end (see
	// ShouldRun). It is ignored while the shim lives.
	Restart bool
}

// Reconcile decides what a new daemon does about a container that it found. It is
// a total function: testdata/reconcile.golden shows every case.
func Reconcile(r Rules, o Observation) Verdict {
	if r.Desired == DesiredRemoved {
		if o.Shim == ShimSilent {
			return Retry
		}
		return Clear
	}
	switch o.Shim {
	case ShimSilent:
		return Retry
	case ShimAnswers:
		switch o.Record {
		case RecordExited, RecordRemoved:
			// The shim is about to exit: its last report comes over the subscription.
			return Adopt
		case RecordCreated, RecordNone, RecordFailed:
			// The daemon died after the shim had started and before the container ran.
			return Abort
		}
		if r.LiveRestore {
			return Adopt
		}
		return HaltLeft
	}

	// No shim runs.
	if o.Process {
		if r.LiveRestore {
			return Watch
		}
		return HaltLeft
	}
	switch o.Record {
	case RecordRemoved:
		return Clear
	case RecordExited, RecordFailed:
		if r.AutoRemove {
			return Clear
		}
		if r.Restart {
			return Run
		}
		return Keep
	case RecordRunning, RecordPaused, RecordRestarting:
		// The shim died with the container: a reboot, or kill -9 of both.
		return Lose
	case RecordCreated:
		return Abort
	}
	if r.Desired == DesiredRunning {
		// The intent was persisted, and there is no record in the run directory: a
		// reboot, or a crash before the shim was started.
		return Lose
	}
	if r.Restart {
		return Run
	}
	return Keep
}
