// SPDX-License-Identifier: Apache-2.0

package container

// Link is how the daemon reaches a running container.
type Link uint8

const (
	// Unlinked: the container has no shim. It does not run, or its start has not
	// spawned the shim yet.
	Unlinked Link = iota
	// Linked: the daemon is connected to the container's shim.
	Linked
	// Searching: the shim has gone without reporting an end. The daemon observes
	// what is left of the container and starts a new shim. Requests wait.
	Searching
	// Unattended: the container runs without a shim, because none could be
	// started. The daemon watches the process, and stops it through the OCI
	// runtime.
	Unattended

	numLinks
)

var linkNames = [numLinks]string{"unlinked", "linked", "searching", "unattended"}

func (l Link) String() string { return nameOf(linkNames[:], l) }

// Attempt is a start whose outcome the daemon waits for. Before the outcome is
// known the shim may report that the container runs, and also that it has ended.
type Attempt uint8

const (
	NoAttempt Attempt = iota
	// Attempting: the start is under way. If it fails, it rolls back its effects.
	Attempting
	// AttemptEnded: the start is under way, and the shim has already reported the
	// end of the run.
	AttemptEnded

	numAttempts
)

var attemptNames = [numAttempts]string{"no attempt", "attempting", "attempt ended"}

func (a Attempt) String() string { return nameOf(attemptNames[:], a) }

// Phase is everything that decides what an input means to a container. It is a
// value: Step returns the next one.
type Phase struct {
	State   State
	Link    Link
	Attempt Attempt
	// Committing: a commit has frozen the container, or thaws it again.
	Committing bool
	// FileUsers counts the requests that read or write the container's files. A
	// root file system is mounted once at a time, and is not removed while it is
	// in use.
	FileUsers int
	// Restarts counts the restarts by users that are between stop and start.
	// Meanwhile --rm does not remove the container.
	Restarts int
}

// Facts are what Step needs to know of a container besides its phase.
type Facts struct {
	HasRun     bool // the container's process ever ran
	AutoRemove bool // --rm
}

// Lost reports whether nothing is known of the container at present, so that a
// new observation must be applied.
func (p Phase) Lost() bool { return p.State == Unknown || p.Link == Searching }

// Step is the lifecycle: it decides what an input means in a phase. It is a total
// and pure function. testdata/step.golden shows every state, and
// testdata/phase.golden the other parts of a phase.
func (p Phase) Step(in Input, f Facts) Outcome {
	if in.ask() {
		return p.request(in)
	}
	return p.observe(in, f)
}

// waits reports whether a request has to wait, whatever the table says.
func (p Phase) waits(in Input) bool {
	if p.Link == Searching {
		return true
	}
	switch in {
	case AskRemove, AskForceRemove:
		// A start that fails rolls back its effects. A removal at the same time would
		// undo the same things.
		return p.FileUsers > 0 || p.Attempt != NoAttempt
	case AskStart:
		return p.FileUsers > 0
	case AskFiles:
		return p.FileUsers > 0 && p.State != Running && p.State != Paused
	case AskShim:
		return p.State == Starting && p.Link == Unlinked
	}
	return false
}

func (p Phase) request(in Input) Outcome {
	if p.waits(in) {
		return Outcome{p, Wait, ""}
	}
	o := p.byTable(in)
	switch {
	case o.Do == undecided:
		return Outcome{p, Refuse, refusals[p.State]}
	case o.Do == Launch:
		o.Next.Attempt = Attempting
	case in == AskFiles && o.Do == Accept:
		o.Next.FileUsers++
	case in == AskCommit && o.Do == Accept:
		if p.Committing {
			return Outcome{p, Refuse, "is being committed already"}
		}
		o.Next.Committing = true
	}
	return o
}

// byTable looks an input up in the table of the states.
func (p Phase) byTable(in Input) Outcome {
	c := table[in][p.State]
	o := Outcome{p, c.do, c.why}
	if c.moves {
		o.Next.State = c.to
	}
	return o
}

// observe is the outcome of an observation. Unlike a request, an observation is
// never refused.
func (p Phase) observe(in Input, f Facts) Outcome {
	o := p.byTable(in)
	if o.Do == undecided {
		o.Do = Accept
	}
	switch in {
	case SawShim, SawShimGone, SawNoSuccessor, SawSilence:
		return p.observeLink(in, o)
	case SawStarted, SawStartFailed:
		return p.observeStart(in, f)
	case SawFailed:
		return p.observeFailed(f)
	case SawEnded, SawEndUnseen, SawGivenBack, SawExited:
		return p.observeEnd(in, f, o)
	case SawCommitOver:
		o.Next.Committing = false
	case SawFilesReturned:
		o.Next.FileUsers = max(p.FileUsers-1, 0)
	case SawRestartBegin:
		o.Next.Restarts++
	case SawRestartOver:
		o.Next.Restarts = max(p.Restarts-1, 0)
	}
	return o
}

// observeLink completes the outcome of an observation of the shim.
func (p Phase) observeLink(in Input, o Outcome) Outcome {
	switch {
	case in == SawShim:
		o.Next.Link = Linked
	case in == SawShimGone:
		return p.shimGone()
	case p.Link != Searching:
		return Outcome{p, Accept, ""}
	case in == SawNoSuccessor:
		o.Next.Link = Unattended
	case in == SawSilence:
		o.Next.Link = Unlinked
	}
	return o
}

// observeStart completes the outcome of a start.
func (p Phase) observeStart(in Input, f Facts) Outcome {
	if in == SawStarted {
		return p.started()
	}
	if p.State != Starting && p.Attempt == NoAttempt {
		return Outcome{p, Accept, ""}
	}
	p.Attempt = NoAttempt
	return p.failed(f)
}

// observeEnd completes the outcome of the end of the last run.
func (p Phase) observeEnd(in Input, f Facts, o Outcome) Outcome {
	switch {
	case in == SawEnded && p.Attempt != NoAttempt:
		o = Outcome{p, Accept, ""}
		o.Next.Attempt = AttemptEnded
		return o
	case in == SawEndUnseen && p.Link == Searching && (p.State == Created || p.State == Exited):
		// The shim of a start that had failed.
		o = Outcome{p, Accept, ""}
		o.Next.Link = Unlinked
		return o
	case in == SawEndUnseen && (p.Link == Linked || p.State == Ending || !p.State.Alive()):
		return Outcome{p, Nothing, ""}
	case in == SawEndUnseen:
		o.Next.Attempt = NoAttempt
	case in == SawGivenBack && p.State != Ending:
		return o
	case in == SawGivenBack && f.AutoRemove && p.Restarts == 0:
		o.Do = AutoRemove
	}
	o.Next.Link = Unlinked
	return o
}

// observeFailed is the outcome when a shim reports that the start has failed. An
// observer may have seen a start that the last daemon had begun.
func (p Phase) observeFailed(f Facts) Outcome {
	switch p.State {
	case Created, Starting, Exited:
		if p.Attempt == NoAttempt {
			return p.failed(f)
		}
	}
	return p.observe(SawEnded, f)
}

// failed is the outcome of a start that has failed: the container is as before it.
func (p Phase) failed(f Facts) Outcome {
	o := Outcome{p, Accept, ""}
	o.Next.Link = Unlinked
	switch p.State {
	case Removing, Dead:
		return o
	case Created, Exited: // an observer shows that all the time
	default:
		o.Next.State = Settle(f.HasRun)
	}
	if f.AutoRemove {
		o.Do = AutoRemove
	}
	return o
}

// shimGone is the outcome when the connection to the shim has ended without the
// shim having reported an end.
func (p Phase) shimGone() Outcome {
	o := Outcome{p, Accept, ""}
	if p.Link != Linked {
		return o
	}
	o.Next.Link = Unlinked
	switch {
	case p.State == Removing, p.State == Starting && p.Attempt != NoAttempt:
		// The removal or the start that is under way notices it, too, and handles it.
	default:
		o.Next.Link, o.Do = Searching, Search
	}
	return o
}

// started is the outcome of a successful start.
func (p Phase) started() Outcome {
	o := Outcome{p, Accept, ""}
	o.Next.Attempt = NoAttempt
	switch {
	case p.Attempt == AttemptEnded:
		return o.Next.observe(SawEnded, Facts{})
	case p.State == Starting && p.Link == Unlinked: // the shim has gone since it was spawned
		o.Next.Link, o.Do = Searching, Search
	}
	return o
}

// Found is the phase after a daemon has observed o of a container and decided on
// v. p is the phase before.
func (p Phase) Found(v Verdict, o Observation, hasRun bool) Phase {
	linked := Unlinked
	if o.Shim == ShimAnswers {
		linked = Linked
	}
	p.Attempt = NoAttempt
	switch v {
	case Adopt:
		p.State, p.Link = alive(o.Record), Linked
	case HaltLeft:
		p.State, p.Link = alive(o.Record), Linked
		if o.Shim != ShimAnswers {
			p.State, p.Link = Running, Unattended
		}
	case Watch:
		p.State, p.Link = alive(o.Record), Searching
	case Retry:
		p.State, p.Link = Unknown, Unlinked
	case Lose:
		p.State, p.Link = Ending, Unlinked
	case Abort:
		p.State, p.Link = Starting, Unlinked
	case Clear:
		p.State, p.Link = Removing, linked
	default:
		p.State, p.Link = Settle(hasRun), Unlinked
	}
	return p
}

// Shown is Found for an observer, which carries no verdict out: it only shows
// what a daemon would find.
func (p Phase) Shown(v Verdict, o Observation, hasRun bool) Phase {
	p.Attempt, p.Link = NoAttempt, Unlinked
	switch {
	case v == Retry:
		p.State = Unknown
	case v == Clear:
		p.State = Removing
	case o.Shim == ShimAnswers && (o.Record == RecordNone || o.Record == RecordCreated || o.Record == RecordFailed):
		p.State, p.Link = Settle(hasRun), Linked
	case o.Shim == ShimAnswers:
		p.State, p.Link = alive(o.Record), Linked
	case o.Process:
		p.State, p.Link = alive(o.Record), Unattended
	case v == Lose:
		p.State = Exited
	default:
		p.State = Settle(hasRun)
	}
	return p
}

// Loaded is the phase according to a container's files, before anything was
// observed.
func Loaded(d Desired, r Record, hasRun bool) Phase {
	if r.Alive() {
		return Phase{State: alive(r)}
	}
	if d == DesiredRemoved {
		return Phase{State: Removing}
	}
	return Phase{State: Settle(hasRun)}
}

// alive is the state of a container with a shim or a process, according to the
// shim's record. A container whose end is recorded counts as running until the
// shim has reported that end, unless its start has failed.
func alive(r Record) State {
	switch r {
	case RecordPaused:
		return Paused
	case RecordRestarting:
		return Restarting
	}
	return Running
}

// Settle is the state of a container that does not run: Exited if it ever ran,
// else Created.
func Settle(hasRun bool) State {
	if hasRun {
		return Exited
	}
	return Created
}

func nameOf[T ~uint8](names []string, v T) string {
	if int(v) < len(names) {
		return names[v]
	}
	return "invalid"
}
