// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"holdfast/internal/shim/proto"
)

// Docker's backoff between restarts.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = time.Minute
	// A run of this length resets the backoff.
	backoffReset = 10 * time.Second
)

// ending is the input of the restart policy about a run that ended.
type ending struct {
	exitCode int
	ran      time.Duration
	manual   bool // the user stopped the container
	restarts int  // how often it was restarted before
	// last is the delay before the run that ended; 0 for none.
	last time.Duration
}

// restartAfter decides whether the container is restarted, and after which delay,
// by Docker's rules. It is pure.
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
