// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/http"
)

// Follows reports whether a request only follows events, logs, stats or a wait
// for as long as its client listens. During a handover such a request stays
// with the old daemon, because it needs nothing that only one daemon may hold.
// So does the request for the handover itself. A handover waits for all other
// requests.
func Follows(r *http.Request) bool {
	_, path, _ := splitVersion(r.URL.Path)
	segments := split(path)
	switch {
	case len(segments) == 1:
		return segments[0] == "events"
	case len(segments) == 3 && segments[0] == "containers":
		switch segments[2] {
		case "logs", "stats", "wait":
			return true
		}
	}
	return path == "/holdfast/v1/upgrade"
}
