// SPDX-License-Identifier: Apache-2.0

package stream

import "strings"

// State is how far the life of a session has come: a value of both directions, the
// client's input and its output.
type State uint8

const (
	// Joined: input and output flow.
	Joined State = iota
	// HalfClosed: the client has ended its input; output flows.
	HalfClosed
	// Deaf: the client takes no more output, which is discarded; input flows.
	Deaf
	// Detaching: the detach keys were read, and the owner records it. Output flows.
	Detaching
	// Detached: the detach is recorded. Output flows until the daemons know of it.
	Detached
	// Draining: no more output comes, and the rest is being written. Input flows.
	Draining
	// Leaving: the same, but what the client sends is discarded.
	Leaving
	// HalfDraining: the same, after the end of the client's input.
	HalfDraining
	// Lingering: EOF was sent to the client. What the client still sends is
	// discarded, within EndTime and EndBytes.
	Lingering
	// Closed: the connection is closed.
	Closed

	numStates
)

var stateNames = [numStates]string{
	"joined", "half-closed", "deaf", "detaching", "detached",
	"draining", "leaving", "half-draining", "lingering", "closed",
}

func (s State) String() string { return stateNames[s] }

// Ending reports whether no more output comes.
func (s State) Ending() bool {
	switch s {
	case Draining, HalfDraining, Leaving, Lingering, Closed:
		return true
	}
	return false
}

// Event is what can happen to a session.
type Event uint8

const (
	ClientEOF   Event = iota // the end of the client's input was read, or reading has failed
	ClientGone               // the client has closed the connection entirely
	WriteFailed              // the client takes no more output
	Keys                     // the detach keys were read
	Recorded                 // the owner has recorded the detach
	OutputEnd                // the owner has no more output: a process has ended
	Written                  // after OutputEnd, all output is written
	Limit                    // after EOF was sent, EndTime or EndBytes is reached
	Abort                    // the owner gives the session up
	Reexec                   // the next binary continues with the state that it gets

	numEvents
)

var eventNames = [numEvents]string{
	"client eof", "client gone", "write failed", "keys", "recorded",
	"output end", "written", "limit", "abort", "re-exec",
}

func (e Event) String() string { return eventNames[e] }

// Action is what to do about an event: a set of bits. Each is idempotent, because a
// re-exec may interrupt it and the next binary then does it again.
type Action uint8

const (
	// CloseInput gives the process EOF, after all that the client has sent.
	CloseInput Action = 1 << iota
	// Record makes the owner record the detach.
	Record
	// Discard drops the output that is queued and all that follows.
	Discard
	// Drain accepts no more output, and writes what is queued.
	Drain
	// SendEOF ends the client's output.
	SendEOF
	// Close closes the connection.
	Close

	Nothing Action = 0
)

var actionNames = []string{"close input", "record", "discard", "drain", "send eof", "close"}

func (a Action) String() string {
	var names []string
	for i, name := range actionNames {
		if a&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// cell is what an event means in a state. With the zero value nothing changes.
type cell struct {
	moves bool
	to    State
	do    Action
}

func move(to State, do Action) cell { return cell{true, to, do} }

func stay(do Action) cell { return cell{do: do} }

// life is the one table of what may happen to a session. Which end goes first is a
// question of the row.
var life = [numStates][numEvents]cell{
	Joined: {
		ClientEOF:   move(HalfClosed, CloseInput),
		ClientGone:  move(HalfClosed, CloseInput), // what it sent still reaches the process
		WriteFailed: move(Deaf, Discard),          // the same
		Keys:        move(Detaching, Record),
		OutputEnd:   move(Draining, Drain),
		Abort:       move(Closed, Discard|Close),
	},
	HalfClosed: {
		ClientGone:  move(Closed, Discard|Close),
		WriteFailed: stay(Discard), // the process may not have read all input yet
		OutputEnd:   move(HalfDraining, Drain),
		Abort:       move(Closed, Discard|Close),
	},
	Deaf: {
		ClientEOF:  move(HalfClosed, CloseInput),
		ClientGone: move(HalfClosed, CloseInput),
		Keys:       move(Detaching, Record),
		OutputEnd:  move(Draining, Drain),
		Abort:      move(Closed, Discard|Close),
		Reexec:     move(Joined, Nothing), // the next write fails too
	},
	Detaching: {
		WriteFailed: stay(Discard),
		Recorded:    move(Detached, Nothing),
		// The end of the output waits for the record.
		Abort: move(Closed, Discard|Close),
	},
	Detached: {
		WriteFailed: stay(Discard),
		OutputEnd:   move(Leaving, Drain),
		Abort:       move(Closed, Discard|Close),
		Reexec:      move(Leaving, Drain), // the daemons read the record when they connect again
	},
	Draining: {
		ClientEOF:   move(HalfDraining, CloseInput),
		ClientGone:  move(HalfDraining, CloseInput),
		WriteFailed: stay(Discard),
		Keys:        move(Leaving, Nothing), // the process has ended: there is nothing to detach from
		Written:     move(Lingering, SendEOF),
		Abort:       move(Closed, Discard|Close),
	},
	Leaving: {
		ClientEOF:   move(HalfDraining, Nothing), // the process's input goes on
		ClientGone:  move(Closed, Discard|Close),
		WriteFailed: stay(Discard),
		Written:     move(Lingering, SendEOF),
		Abort:       move(Closed, Discard|Close),
	},
	HalfDraining: {
		ClientGone:  move(Closed, Discard|Close),
		WriteFailed: stay(Discard),
		Written:     move(Closed, SendEOF|Close), // nothing is left to read
		Abort:       move(Closed, Discard|Close),
	},
	Lingering: {
		ClientEOF:  move(Closed, Close),
		ClientGone: move(Closed, Close),
		Limit:      move(Closed, Close),
		Abort:      move(Closed, Close),
		Reexec:     move(Leaving, Nothing), // EOF is sent again
	},
	Closed: {},
}

// Next returns the state that follows an event, and what to do.
func (s State) Next(e Event) (State, Action) {
	c := life[s][e]
	if !c.moves {
		return s, c.do
	}
	return c.to, c.do
}
