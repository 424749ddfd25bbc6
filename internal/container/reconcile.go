package container

// ShimSeen is what became of the attempt to reach a container's shim.
type ShimSeen uint8

const (
	// ShimNone: nobody listens, nobody will.
	ShimNone ShimSeen = iota
	// ShimAnswers: it said hello.
	ShimAnswers
	// ShimSilent: it may be there and did not answer in time.
	ShimSilent

	numShimSeen
)

var shimSeenNames = [numShimSeen]string{"no shim", "shim answers", "shim silent"}

func (s ShimSeen) String() string { return shimSeenNames[s] }

// Record is the last that a shim wrote of this life, told by the shim itself
// or read from its files.
type Record uint8

const (
	// RecordNone: nothing was written of this life.
	RecordNone Record = iota
	// RecordCreated: the shim was there, the runtime was not called yet.
	RecordCreated
	// RecordRunning, RecordPaused, RecordRestarting: as the states.
	RecordRunning
	RecordPaused
	RecordRestarting
	// RecordExited: it ended for good; the exit record is exact.
	RecordExited
	// RecordRemoved: it ended and --rm was carried out.
	RecordRemoved

	numRecords
)

var recordNames = [numRecords]string{
	"no record", "created", "running", "paused", "restarting", "exited", "removed",
}

func (r Record) String() string { return recordNames[r] }

// Observation is what a new daemon found of a container.
type Observation struct {
	Shim   ShimSeen
	Record Record
	// Process: the container's process lives, told by its pid and start time.
	Process bool
}

// Verdict is what a new daemon does about a container.
type Verdict uint8

const (
	// Keep: leave it as it is, Created or Exited.
	Keep Verdict = iota
	// Adopt: subscribe to its shim and go on.
	Adopt
	// Retry: nothing could be observed, so nothing is changed; ask again.
	Retry
	// Watch: its process runs without a shim; watch it and take its end.
	Watch
	// HaltLeft: live restore is off; stop what a crash left running, then ask
	// again with what is seen then.
	HaltLeft
	// Lose: it ran, and its end was seen by nobody: exited, code unknown.
	Lose
	// Abort: a start that a crash interrupted before anything ran.
	Abort
	// Run: start it by its restart policy.
	Run
	// Clear: finish its removal.
	Clear

	numVerdicts
)

var verdictNames = [numVerdicts]string{
	"keep", "adopt", "retry", "watch", "halt", "lose", "abort", "run", "clear",
}

func (v Verdict) String() string { return verdictNames[v] }

// Rules are what Reconcile needs to know of a container's wishes.
type Rules struct {
	Desired     Desired
	LiveRestore bool
	// AutoRemove: --rm.
	AutoRemove bool
	// Restart: the policy asks for a run after the end that Observation tells
	// (see ShouldRun). It has no say while the shim lives.
	Restart bool
}

// Reconcile decides what a new daemon does with a container that it found. It
// is total; testdata/reconcile.golden shows every case.
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
			// On its way out: its last words come over the subscription.
			return Adopt
		case RecordCreated, RecordNone:
			// The daemon died between the shim's start and the runtime's.
			return Abort
		}
		if r.LiveRestore {
			return Adopt
		}
		return HaltLeft
	}

	// Nobody listens.
	if o.Process {
		if r.LiveRestore {
			return Watch
		}
		return HaltLeft
	}
	switch o.Record {
	case RecordRemoved:
		return Clear
	case RecordExited:
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
		// The intent was persisted, and /run knows nothing: a reboot, or a
		// crash before the shim was started.
		return Lose
	}
	if r.Restart {
		return Run
	}
	return Keep
}

// ShouldRun says whether a restart policy starts a container when a daemon
// comes up: always does even after a manual stop, unless-stopped only without
// one, on-failure after an end that was one, within its limit.
// Source: Docker's documentation of restart policies.
func ShouldRun(p RestartPolicy, d Desired, hasRun bool, exitCode, restarts int) bool {
	if !hasRun {
		return false
	}
	switch p.Name {
	case "always":
		return true
	case "unless-stopped":
		return d == DesiredRunning
	case "on-failure":
		return d == DesiredRunning && exitCode != 0 && (p.MaxRetries == 0 || restarts < p.MaxRetries)
	}
	return false
}
