package server

import (
	"time"

	"holdfast/internal/shim/proto"
)

// Docker's backoff between restarts.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = time.Minute
	// A run of this length counts as one that worked: the backoff begins anew.
	backoffReset = 10 * time.Second
)

// ending is what the restart policy knows of a run that ended.
type ending struct {
	exitCode int
	ran      time.Duration
	manual   bool // the user stopped the container
	restarts int  // how often it was restarted before
	// last is the delay before the run that ended; 0 when there was none.
	last time.Duration
}

// restartAfter says whether the container is started again, and after which
// delay. It is pure: Docker's rules and nothing else.
func restartAfter(p proto.RestartPolicy, e ending) (delay time.Duration, again bool) {
	if e.manual {
		return 0, false
	}
	switch p.Name {
	case "always", "unless-stopped":
	case "on-failure":
		if e.exitCode == 0 || p.MaxRetries > 0 && e.restarts >= p.MaxRetries {
			return 0, false
		}
	default:
		return 0, false
	}
	if e.last == 0 || e.ran >= backoffReset {
		return backoffFirst, true
	}
	return min(2*e.last, backoffMost), true
}
