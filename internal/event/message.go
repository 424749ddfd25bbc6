// Package event owns the journal of what happened: the files under events/ of
// the data root. Every event of the API is appended there before anybody
// sees it, and subscribers read it from there, so that they may be as slow as
// they like and an event of the daemon's past is told like one of now.
//
// It owns the record of the daemon's own lives too (see Lives). It touches
// nothing outside of its folder and knows nothing of what the events are about.
package event

import "time"

// Message is an event, in the JSON form of the Docker Engine API's
// events.Message, and where it came from.
type Message struct {
	Type   string
	Action string
	Actor  Actor
	Scope  string `json:"scope,omitempty"` // "local"

	Time     int64 `json:"time,omitempty"`     // seconds since 1970
	TimeNano int64 `json:"timeNano,omitempty"` // nanoseconds since 1970

	// Source names the entry of another journal that this event was taken
	// from, as "<stream>:<number>", for example "<container>/<life>:<seq>". It
	// is recorded once at most. Empty is an event of the daemon itself.
	Source string `json:"source,omitempty"`
}

// Actor is what the event happened to.
type Actor struct {
	ID         string
	Attributes map[string]string
}

// New makes a message of scope local at the time at.
func New(typ, action, id string, attributes map[string]string, at time.Time) Message {
	return Message{
		Type: typ, Action: action, Scope: "local",
		Actor: Actor{ID: id, Attributes: attributes},
		Time:  at.Unix(), TimeNano: at.UnixNano(),
	}
}

// At is the time of the event.
func (m Message) At() time.Time {
	if m.TimeNano == 0 {
		return time.Unix(m.Time, 0)
	}
	return time.Unix(0, m.TimeNano)
}
