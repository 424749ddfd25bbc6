// SPDX-License-Identifier: Apache-2.0

package event

import (
	"strings"

	"holdfast/internal/filter"
)

// Filters are the filter terms of GET /events (API 1.56).
var Filters = []string{
	"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope",
	"secret", "service", "type", "volume",
}

// Match applies the filters of GET /events by Docker's rules: the filter of an
// object's own kind matches its ID or name; labels are matched in the
// attributes.
func Match(f filter.Args, m Message) bool {
	action, _, _ := strings.Cut(m.Action, ":")
	if !f.Exact("type", m.Type) || !f.Exact("scope", m.Scope) || !f.KV("label", m.Actor.Attributes) {
		return false
	}
	if f.Has("event") && !f.Exact("event", m.Action) && !f.Exact("event", action) {
		return false
	}
	for _, kind := range []string{"container", "image", "volume", "network", "daemon", "config", "node", "plugin", "secret", "service"} {
		if !f.Has(kind) {
			continue
		}
		if m.Type != kind {
			// An image filter also matches the events of containers of that
			// image.
			if kind == "image" && m.Type == "container" && f.Exact("image", m.Actor.Attributes["image"]) {
				continue
			}
			return false
		}
		name := m.Actor.Attributes["name"]
		if !f.Prefix(kind, m.Actor.ID) && !f.Exact(kind, name) && !f.Exact(kind, strings.TrimSuffix(name, ":latest")) {
			return false
		}
	}
	return true
}
