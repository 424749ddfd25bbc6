// SPDX-License-Identifier: Apache-2.0

// Package event owns the journal of events: the files under events/ of the data
// root. Every event of the API is appended there before any subscriber sees it,
// and subscribers read it from there. So they may be arbitrarily slow, and
// events from before a restart of the daemon can be replayed.
//
// It also owns the record of the daemon's lives (see Lives). It touches nothing
// outside of its directory, and does not know the objects that the events are
// about.
package event

import (
	"math"
	"time"
)

// Message is an event in the JSON form of the Docker Engine API's
// events.Message, with its source.
type Message struct {
	Type   string
	Action string
	Actor  Actor
	Scope  string `json:"scope,omitempty"` // "local"

	Time     int64 `json:"time,omitempty"`     // seconds since 1970
	TimeNano int64 `json:"timeNano,omitempty"` // nanoseconds since 1970

	// Source names the entry of another journal from which this event was
	// taken, as "<stream>:<number>", for example "<container>/<life>:<seq>".
	// Each source is recorded at most once. It is empty for an event of the
	// daemon itself.
	Source string `json:"source,omitempty"`
}

// Actor is the object of an event.
type Actor struct {
	ID         string
	Attributes map[string]string
}

// New makes a message of scope local with the time at.
func New(typ, action, id string, attributes map[string]string, at time.Time) Message {
	return Message{
		Type: typ, Action: action, Scope: "local",
		Actor: Actor{ID: id, Attributes: attributes},
		Time:  at.Unix(), TimeNano: at.UnixNano(),
	}
}

// At is the time of the event. A damaged journal may have times that can't be
// represented in nanoseconds. They are clamped to the nearest that can.
func (m Message) At() time.Time {
	if m.TimeNano != 0 {
		return time.Unix(0, m.TimeNano)
	}
	const most = math.MaxInt64 / int64(time.Second)
	return time.Unix(max(-most, min(most, m.Time)), 0)
}
