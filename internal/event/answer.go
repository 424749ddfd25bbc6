// SPDX-License-Identifier: Apache-2.0

package event

// legacyAnswer has the fields from before Actor, which the API sent until
// version 1.52.
type legacyAnswer struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	Message
}

// Answer returns the API's form of an event, to be encoded as JSON: the Docker
// Engine API's events.Message. With legacy it includes the fields for clients
// older than API 1.52.
func (m Message) Answer(legacy bool) any {
	m.Source = "" // Source is not part of the API
	if !legacy {
		return m
	}
	l := legacyAnswer{Message: m}
	switch m.Type {
	case "container":
		l.Status, l.ID, l.From = m.Action, m.Actor.ID, m.Actor.Attributes["image"]
	case "image":
		l.Status, l.ID = m.Action, m.Actor.ID
	}
	return l
}
