package container

// Input is what can happen to a container: something that a user asks, or
// something that was seen of it.
type Input uint8

const (
	AskStart Input = iota
	AskStop
	AskKill
	AskPause
	AskUnpause
	AskRemove
	AskForceRemove
	AskExec
	AskAttach
	AskChange // rename, update
	AskFiles  // read or write its files

	SawRunning
	SawStartFailed
	SawPaused
	SawRestarting
	SawExited
	SawRemoved
	SawRemoveFailed
	SawLost

	numInputs
)

var inputNames = [numInputs]string{
	"ask start", "ask stop", "ask kill", "ask pause", "ask unpause",
	"ask remove", "ask force remove", "ask exec", "ask attach", "ask change", "ask files",
	"saw running", "saw start failed", "saw paused", "saw restarting",
	"saw exited", "saw removed", "saw remove failed", "saw lost",
}

func (i Input) String() string {
	if i < numInputs {
		return inputNames[i]
	}
	return "invalid"
}

// Action is what is to be done about an Input.
type Action uint8

const (
	// Accept: nothing to do but to be in the next state.
	Accept Action = iota
	// Nothing: what was asked is so already (HTTP 304).
	Nothing
	// Wait: ask again when the present state has passed.
	Wait
	// Refuse: it can't be done in this state; Outcome.Why says why.
	Refuse
	// Launch: prepare, start a shim and run.
	Launch
	// Halt: the stop signal, the time-out, then SIGKILL.
	Halt
	// Signal: deliver a signal.
	Signal
	// Freeze and Thaw: pause and resume.
	Freeze
	Thaw
	// Remove: take away what is left of it.
	Remove
	// HaltAndRemove: SIGKILL first.
	HaltAndRemove

	numActions
)

var actionNames = [numActions]string{
	"accept", "nothing", "wait", "refuse", "launch", "halt", "signal",
	"freeze", "thaw", "remove", "halt and remove",
}

func (a Action) String() string {
	if a < numActions {
		return actionNames[a]
	}
	return "invalid"
}

// Outcome is the answer of Step.
type Outcome struct {
	Next State
	Do   Action
	// Why says in Docker's words why an input is refused; the sentence begins
	// after "container NAME".
	Why string
}

// Step is the lifecycle: what an input means in a state. It is total, and has
// no memory beside its arguments. testdata/step.golden shows it whole.
func Step(s State, in Input) Outcome {
	switch in {
	case AskStart:
		switch s {
		case Created, Exited:
			return Outcome{Starting, Launch, ""}
		case Starting, Stopping:
			return Outcome{s, Wait, ""}
		case Running, Restarting:
			return Outcome{s, Nothing, ""}
		case Paused:
			return refuse(s, "is paused, unpause it instead of starting it")
		}
	case AskStop:
		switch s {
		case Created, Exited, Removing, Dead:
			return Outcome{s, Nothing, ""}
		case Running, Paused, Restarting:
			return Outcome{Stopping, Halt, ""}
		case Starting, Stopping:
			return Outcome{s, Wait, ""}
		}
	case AskKill:
		switch s {
		case Running, Paused, Stopping:
			return Outcome{s, Signal, ""}
		case Restarting:
			return Outcome{Stopping, Halt, ""}
		case Starting:
			return Outcome{s, Wait, ""}
		case Created, Exited:
			return refuse(s, "is not running")
		}
	case AskPause:
		switch s {
		case Running:
			return Outcome{s, Freeze, ""}
		case Paused:
			return refuse(s, "is already paused")
		case Starting:
			return Outcome{s, Wait, ""}
		case Restarting:
			return refuse(s, "is restarting, wait until the container is running")
		case Created, Exited, Stopping:
			return refuse(s, "is not running")
		}
	case AskUnpause:
		switch s {
		case Paused:
			return Outcome{s, Thaw, ""}
		case Starting:
			return Outcome{s, Wait, ""}
		case Created, Running, Restarting, Stopping, Exited:
			return refuse(s, "is not paused")
		}
	case AskRemove:
		switch s {
		case Created, Exited, Dead:
			return Outcome{Removing, Remove, ""}
		case Starting:
			return Outcome{s, Wait, ""}
		case Running, Stopping:
			return refuse(s, "is running: stop the container before removing or force remove")
		case Paused:
			return refuse(s, "is paused and must be unpaused first: unpause and stop it before removing or force remove")
		case Restarting:
			return refuse(s, "is restarting: stop the container before removing or force remove")
		}
	case AskForceRemove:
		switch s {
		case Created, Exited, Dead:
			return Outcome{Removing, Remove, ""}
		case Starting:
			return Outcome{s, Wait, ""}
		case Running, Paused, Restarting, Stopping, Unknown:
			return Outcome{Removing, HaltAndRemove, ""}
		}
	case AskExec:
		switch s {
		case Running:
			return Outcome{s, Accept, ""}
		case Starting:
			return Outcome{s, Wait, ""}
		case Paused:
			return refuse(s, "is paused, unpause the container before exec")
		case Restarting:
			return refuse(s, "is restarting, wait until the container is running")
		case Created, Exited, Stopping:
			return refuse(s, "is not running")
		}
	case AskAttach:
		switch s {
		case Created, Running, Stopping, Exited:
			return Outcome{s, Accept, ""}
		case Starting:
			return Outcome{s, Wait, ""}
		case Paused:
			return refuse(s, "is paused, unpause the container before attach")
		case Restarting:
			return refuse(s, "is restarting, wait until the container is running")
		}
	case AskChange:
		switch s {
		case Removing, Dead:
		case Starting:
			return Outcome{s, Wait, ""}
		default:
			return Outcome{s, Accept, ""}
		}

	case AskFiles:
		switch s {
		case Created, Running, Paused, Restarting, Exited:
			return Outcome{s, Accept, ""}
		case Starting, Stopping:
			return Outcome{s, Wait, ""}
		}

	case SawRunning:
		switch s {
		case Starting, Running, Paused, Restarting, Unknown, Created, Exited:
			return Outcome{Running, Accept, ""}
		}
		return Outcome{s, Accept, ""}
	case SawStartFailed:
		if s == Starting {
			// Created or Exited: Settle knows which.
			return Outcome{Exited, Accept, ""}
		}
		return Outcome{s, Accept, ""}
	case SawPaused:
		switch s {
		case Running, Unknown, Starting:
			return Outcome{Paused, Accept, ""}
		}
		return Outcome{s, Accept, ""}
	case SawRestarting:
		switch s {
		case Running, Paused, Unknown, Starting:
			return Outcome{Restarting, Accept, ""}
		}
		return Outcome{s, Accept, ""}
	case SawExited:
		switch s {
		case Removing, Dead:
			return Outcome{s, Accept, ""}
		}
		return Outcome{Exited, Accept, ""}
	case SawRemoved:
		return Outcome{Removing, Accept, ""}
	case SawRemoveFailed:
		return Outcome{Dead, Accept, ""}
	case SawLost:
		switch s {
		case Starting, Running, Paused, Restarting, Stopping:
			return Outcome{Unknown, Accept, ""}
		}
		return Outcome{s, Accept, ""}
	}

	switch s {
	case Removing:
		return refuse(s, "is marked for removal")
	case Dead:
		return refuse(s, "is dead: its removal failed half way, remove it again")
	case Unknown:
		return refuse(s, "can't be reached: its shim does not answer")
	}
	return refuse(s, "is "+s.String())
}

func refuse(s State, why string) Outcome { return Outcome{s, Refuse, why} }

// Settle is the state of a container that nothing runs of: Exited if it ever
// ran, else Created.
func Settle(hasRun bool) State {
	if hasRun {
		return Exited
	}
	return Created
}
