package api

import (
	"net/http"
)

// Follows reports whether a request only tells what happens, for as long as
// its client listens: events, logs, stats, a wait. Such a one goes on in a
// daemon that has handed over, as it needs nothing that is exclusive; nor does
// the request for the handover. Every other is waited for.
func Follows(r *http.Request) bool {
	path := r.URL.Path
	if _, rest, ok := splitVersion(path); ok {
		path = rest
	}
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
