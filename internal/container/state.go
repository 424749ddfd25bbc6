package container

// State is where a container is in its life. It is one value; the booleans
// that the Docker API shows are derived from it at the edge.
type State uint8

const (
	// Created: made, never run.
	Created State = iota
	// Starting: a start is under way and ends in Running or back in Exited or
	// Created.
	Starting
	// Running: the container's process lives.
	Running
	// Paused: it lives, frozen.
	Paused
	// Restarting: it has ended and the restart policy's delay runs.
	Restarting
	// Stopping: a stop was asked and the process has yet to go.
	Stopping
	// Exited: it has run and will not run again by itself.
	Exited
	// Removing: removal has begun.
	Removing
	// Dead: removal failed half way; it can be tried again.
	Dead
	// Unknown: its shim can't be reached, so nothing can be said and nothing
	// is undone.
	Unknown

	numStates
)

var stateNames = [numStates]string{
	"created", "starting", "running", "paused", "restarting", "stopping",
	"exited", "removing", "dead", "unknown",
}

func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return "invalid"
}

// Alive reports whether the container occupies its resources: its network,
// its mounts and its name in /run are in use.
func (s State) Alive() bool {
	switch s {
	case Starting, Running, Paused, Restarting, Stopping, Unknown:
		return true
	}
	return false
}

// Docker gives the state in the words of the Engine API. Transient states
// show as the state that they lead away from: hasRun tells whether a container
// that is starting shows as exited or as created.
func (s State) Docker(hasRun bool) string {
	switch s {
	case Starting:
		if hasRun {
			return "exited"
		}
		return "created"
	case Stopping, Unknown:
		return "running"
	}
	return s.String()
}
