// SPDX-License-Identifier: Apache-2.0

package container

// Input is what can happen to a container: a request by a user or by a policy,
// or an observation.
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
	AskJoin    // hand an attached client to the shim
	AskShim    // any other call to the shim
	AskChange  // rename, update
	AskNetwork // connect, disconnect
	AskFiles   // read or write the container's files
	AskCommit  // freeze the container to commit it

	SawShim        // a shim is connected
	SawShimGone    // the connection to the shim ended before the shim reported an end
	SawSilence     // the shim does not answer
	SawNoSuccessor // no shim can be started for the running container
	SawStarted     // the start was successful
	SawStartFailed // the start has failed, and was rolled back
	SawRunning
	SawPaused
	SawRestarting
	SawEnded     // the shim reported the end of the last run
	SawFailed    // the shim reported that the start has failed
	SawEndUnseen // the container has ended, and no shim reported it
	SawGivenBack // what the last run used of the host was given back
	SawExited    // another daemon has handled the end of the last run
	SawRemoving  // the removal was recorded
	SawRemoveFailed
	SawCommitOver
	SawFilesReturned
	SawRestartBegin // by a user
	SawRestartOver

	numInputs
)

var inputNames = [numInputs]string{
	"ask start", "ask stop", "ask kill", "ask pause", "ask unpause", "ask remove", "ask force remove",
	"ask exec", "ask attach", "ask join", "ask shim", "ask change", "ask network", "ask files", "ask commit",
	"saw shim", "saw shim gone", "saw silence", "saw no successor", "saw started", "saw start failed",
	"saw running", "saw paused", "saw restarting", "saw ended", "saw failed", "saw end unseen", "saw given back",
	"saw exited", "saw removing", "saw remove failed", "saw commit over", "saw files returned",
	"saw restart begin", "saw restart over",
}

func (i Input) String() string { return nameOf(inputNames[:], i) }

// ask reports whether an input is a request. The others are observations.
func (i Input) ask() bool { return i < SawShim }

// Action is what the caller of Step has to do about an Input.
type Action uint8

const (
	undecided Action = iota // the table has no entry
	// Accept: enter the next phase, and nothing else.
	Accept
	// Nothing: the container already is as requested (HTTP 304).
	Nothing
	// Wait: try again when the present phase is over.
	Wait
	// Refuse: the request is impossible in this state. Outcome.Why is the reason.
	Refuse
	// Launch: prepare the container, spawn its shim and run it.
	Launch
	// Halt: send the stop signal, and SIGKILL after the time-out. Several halts
	// may be under way at the same time.
	Halt
	// Signal: deliver a signal.
	Signal
	// Freeze and Thaw: pause and resume.
	Freeze
	Thaw
	// Remove: record the removal, then remove all that is left of the container.
	Remove
	// HaltAndRemove: SIGKILL, then Remove.
	HaltAndRemove
	// Search: observe what is left of a container whose shim has gone.
	Search
	// GiveBack: release what the last run used of the host.
	GiveBack
	// AutoRemove: remove the container because of --rm.
	AutoRemove

	numActions
)

var actionNames = [numActions]string{
	"undecided", "accept", "nothing", "wait", "refuse", "launch", "halt", "signal",
	"freeze", "thaw", "remove", "halt and remove", "search", "give back", "auto-remove",
}

func (a Action) String() string { return nameOf(actionNames[:], a) }

// Outcome is the result of Step.
type Outcome struct {
	Next Phase
	Do   Action
	// Why is the reason of a refusal, worded as in Docker. It continues a sentence
	// that begins with "container NAME".
	Why string
}

// cell is what an input means in a state. With the zero value a request is
// refused with the state's sentence of refusals, and an observation changes
// nothing.
type cell struct {
	do    Action
	to    State // if moves
	moves bool
	why   string
}

// row is what an input means in each state.
type row [numStates]cell

func stay(do Action) cell           { return cell{do: do} }
func move(to State, do Action) cell { return cell{do: do, to: to, moves: true} }
func refuse(why string) cell        { return cell{do: Refuse, why: why} }

// refusals are the reasons for refusing a request in a state, where the table has
// none.
var refusals = func() (whys [numStates]string) {
	for s := range numStates {
		whys[s] = "is " + s.String()
	}
	whys[Removing] = "is marked for removal"
	whys[Dead] = "is dead: its removal failed half way, remove it again"
	whys[Unknown] = "can't be reached: its shim does not answer"
	return whys
}()

var (
	accept, wait, nothing = stay(Accept), stay(Wait), stay(Nothing)

	notRunning   = refuse("is not running")
	notPaused    = refuse("is not paused")
	isRestarting = refuse("is restarting, wait until the container is running")
)

// table is the part of the lifecycle that depends on the state alone.
var table = [numInputs]row{
	AskStart: {
		Created: move(Starting, Launch), Exited: move(Starting, Launch),
		Starting: wait, Ending: wait,
		Running: nothing, Restarting: nothing,
		Paused: refuse("is paused, unpause it instead of starting it"),
	},
	AskStop: {
		Created: nothing, Exited: nothing, Removing: nothing, Dead: nothing,
		// A stop that is under way does not matter: each has its own signal and
		// time-out.
		Running: stay(Halt), Paused: stay(Halt), Restarting: stay(Halt),
		Starting: wait, Ending: wait,
	},
	AskKill: {
		Running: stay(Signal), Paused: stay(Signal), Restarting: stay(Halt),
		Starting: wait, Ending: wait,
		Created: notRunning, Exited: notRunning,
	},
	AskPause: {
		Running: stay(Freeze), Paused: refuse("is already paused"), Starting: wait, Restarting: isRestarting,
		Created: notRunning, Exited: notRunning, Ending: notRunning,
	},
	AskUnpause: {
		Paused: stay(Thaw), Starting: wait,
		Created: notPaused, Running: notPaused, Restarting: notPaused, Ending: notPaused, Exited: notPaused,
	},
	AskRemove: {
		Created: stay(Remove), Exited: stay(Remove), Dead: stay(Remove),
		Starting: wait, Ending: wait,
		Running:    refuse("is running: stop the container before removing or force remove"),
		Paused:     refuse("is paused and must be unpaused first: unpause and stop it before removing or force remove"),
		Restarting: refuse("is restarting: stop the container before removing or force remove"),
	},
	AskForceRemove: {
		Created: stay(Remove), Exited: stay(Remove), Dead: stay(Remove), Ending: stay(Remove),
		Running: stay(HaltAndRemove), Paused: stay(HaltAndRemove), Restarting: stay(HaltAndRemove), Unknown: stay(HaltAndRemove),
		Starting: wait,
	},
	AskExec: {
		Running: accept, Starting: wait,
		Paused:     refuse("is paused, unpause the container before exec"),
		Restarting: isRestarting,
		Created:    notRunning, Exited: notRunning, Ending: notRunning,
	},
	AskAttach: {
		Created: accept, Running: accept, Ending: accept, Exited: accept, Starting: wait,
		Paused:     refuse("is paused, unpause the container before attach"),
		Restarting: isRestarting,
	},
	AskJoin: {
		Starting: wait,
		Created:  accept, Running: accept, Paused: accept, Restarting: accept, Ending: accept,
		Exited: accept, Removing: accept, Dead: accept, Unknown: accept,
	},
	AskShim: {
		Created: accept, Starting: accept, Running: accept, Paused: accept, Restarting: accept, Ending: accept,
		Exited: accept, Removing: accept, Dead: accept, Unknown: accept,
	},
	AskChange: {
		Starting: wait,
		Created:  accept, Running: accept, Paused: accept, Restarting: accept, Ending: accept, Exited: accept, Unknown: accept,
	},
	AskNetwork: {
		// While the networks are being released a new one must wait: its interface
		// and addresses would never be released.
		Starting: wait, Ending: wait,
		Created: accept, Running: accept, Paused: accept, Restarting: accept, Exited: accept, Unknown: accept,
	},
	AskFiles: {
		Created: accept, Running: accept, Paused: accept, Restarting: accept, Exited: accept,
		Starting: wait, Ending: wait,
	},
	AskCommit: {
		Starting: wait,
		Created:  accept, Running: accept, Paused: accept, Restarting: accept, Ending: accept, Exited: accept, Unknown: accept,
	},

	SawSilence: {
		Starting: move(Unknown, Accept), Running: move(Unknown, Accept), Paused: move(Unknown, Accept),
		Restarting: move(Unknown, Accept), Ending: move(Unknown, Accept),
	},
	SawRunning: {
		Starting: move(Running, Accept), Paused: move(Running, Accept), Restarting: move(Running, Accept),
		Unknown: move(Running, Accept), Created: move(Running, Accept), Exited: move(Running, Accept),
	},
	SawPaused: {
		Running: move(Paused, Accept), Unknown: move(Paused, Accept), Starting: move(Paused, Accept),
	},
	SawRestarting: {
		Running: move(Restarting, Accept), Paused: move(Restarting, Accept),
		Unknown: move(Restarting, Accept), Starting: move(Restarting, Accept),
	},
	SawEnded: {
		Created: move(Ending, GiveBack), Starting: move(Ending, GiveBack), Running: move(Ending, GiveBack), Paused: move(Ending, GiveBack),
		Restarting: move(Ending, GiveBack), Exited: move(Ending, GiveBack), Unknown: move(Ending, GiveBack),
		// The removal that is under way does the rest.
		Removing: stay(GiveBack), Dead: stay(GiveBack),
	},
	SawEndUnseen: {
		Starting: move(Ending, GiveBack), Running: move(Ending, GiveBack), Paused: move(Ending, GiveBack),
		Restarting: move(Ending, GiveBack), Unknown: move(Ending, GiveBack),
	},
	SawGivenBack: {Ending: move(Exited, Accept)},
	SawExited: {
		Created: move(Exited, Accept), Starting: move(Exited, Accept), Running: move(Exited, Accept), Paused: move(Exited, Accept),
		Restarting: move(Exited, Accept), Ending: move(Exited, Accept), Unknown: move(Exited, Accept),
	},
	SawRemoving: {
		Created: move(Removing, Accept), Starting: move(Removing, Accept), Running: move(Removing, Accept), Paused: move(Removing, Accept),
		Restarting: move(Removing, Accept), Ending: move(Removing, Accept), Exited: move(Removing, Accept), Dead: move(Removing, Accept),
		Unknown: move(Removing, Accept),
	},
	SawRemoveFailed: {Removing: move(Dead, Accept)},
}
