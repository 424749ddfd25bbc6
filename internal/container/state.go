// SPDX-License-Identifier: Apache-2.0

package container

// State is where a container is in its life. It is one value; the booleans
// that the Docker API shows are derived from it at the edge.
type State uint8

const (
	// Created: the container exists and has never run.
	Created State = iota
	// Starting: a start is under way and ends in Running or back in Exited or
	// Created.
	Starting
	// Running: the container's process lives.
	Running
	// Paused: the process lives and is frozen.
	Paused
	// Restarting: the process has ended, and the restart policy's delay runs.
	Restarting
	// Ending: the container's last process has ended, and what it used of the
	// host is being given back. A container that was asked to stop remains Running
	// until its process ends: a stop may take any time, and meanwhile every request
	// for a running container works.
	Ending
	// Exited: the container has run and will not run again by itself.
	Exited
	// Removing: removal has begun.
	Removing
	// Dead: removal failed half way. It can be tried again.
	Dead
	// Unknown: the container's shim can't be reached. Whether the container runs
	// is not known, so nothing of it is undone.
	Unknown

	numStates
)

var stateNames = [numStates]string{
	"created", "starting", "running", "paused", "restarting", "ending",
	"exited", "removing", "dead", "unknown",
}

func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return "invalid"
}

// Alive reports whether the container may use its resources on the host: its
// network, its mounts and its run directory.
func (s State) Alive() bool {
	switch s {
	case Starting, Running, Paused, Restarting, Ending, Unknown:
		return true
	}
	return false
}

// Docker returns the state under its name in the Engine API. A transient state
// shows as the state before it. A container that is starting shows as exited if
// it has run before (hasRun), and as created otherwise.
func (s State) Docker(hasRun bool) string {
	switch s {
	case Starting:
		if hasRun {
			return "exited"
		}
		return "created"
	case Ending, Unknown:
		return "running"
	}
	return s.String()
}
