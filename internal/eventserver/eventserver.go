// SPDX-License-Identifier: Apache-2.0

// Package eventserver serves GET /events in a process of its own, so that the
// stream continues when the daemon is killed, stopped or replaced.
//
// The event server is the daemon's own binary. It is started for the first
// client that follows events, and ends soon after the last one has left. The
// daemon sends it a client's socket and the place in the journal at which the
// request came. The event server reads the journal's files from there, and
// notices by inotify what any daemon records later. It needs no daemon: events
// that happen while none runs are recorded, and sent, once the next one has
// started.
//
// Daemon and event server are the same binary, so their protocol has no
// versions. A daemon starts an event server of its own and never uses that of
// an earlier daemon, which serves until its own clients have left.
package eventserver

import (
	"time"

	"holdfast/internal/event"
	"holdfast/internal/filter"
)

// Command is the first argument of an event server's process; the second is the
// directory of the journal. ControlFD is its descriptor of the connection to
// the daemon, a socket of type SOCK_SEQPACKET.
const (
	Command   = "serve-events"
	ControlFD = 3
)

// processName is the name of the event server in ps.
const processName = "holdfast-events"

// Request is a client's request. The client's socket is sent with it.
type Request struct {
	// Head is the response's head, which is sent first.
	Head []byte `json:"head"`
	// From is the journal's end at the time of the request.
	From event.Position `json:"from"`
	// Since and Until bound the events' times; zero is no bound. Events before
	// From are sent only if one of them is set.
	Since   time.Time   `json:"since,omitzero"`
	Until   time.Time   `json:"until,omitzero"`
	Filters filter.Args `json:"filters,omitempty"`
	// Legacy adds the fields of clients older than API 1.52.
	Legacy bool `json:"legacy,omitempty"`
	// Sequence puts a record separator before each event (RFC 7464).
	Sequence bool `json:"sequence,omitempty"`
}

// report is a message of the event server to the daemon.
type report struct {
	// Answer is set in the one report that answers a request. Refused is the
	// reason why the client was not accepted.
	Answer  bool   `json:"answer,omitempty"`
	Refused string `json:"refused,omitempty"`
	// Clients is the number of clients being served.
	Clients int `json:"clients"`
}

// descriptorsEach is the number of descriptors that a client may need: its
// socket, and the journal file that it is reading.
const descriptorsEach = 2

// descriptorsBeside is the number of descriptors for the event server itself
// and for the files of a replay, which are open for a moment.
const descriptorsBeside = 40

// messageLimit bounds a message between the two, in bytes. The kernel's bound
// is the size of the socket's buffer.
const messageLimit = 128 << 10
