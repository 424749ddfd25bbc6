package engine

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/moby/moby/api/types/events"

	"holdfast/internal/event"
	"holdfast/internal/filter"
)

// Events replays the journal from Since on, in the order of the events' own
// times, and follows it until Until, the context's end, or the daemon's.
func (e *Engine) Events(ctx context.Context, o EventsOptions, emit func(events.Message) error) error {
	known := []string{"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume"}
	if err := o.Filters.Check(known...); err != nil {
		return invalid("%v", err)
	}
	sub := e.events.Subscribe(o.Since, o.Until, func(m event.Message) bool { return eventMatches(o.Filters, m) })
	defer sub.Close()
	e.listeners.Add(1)
	defer e.listeners.Add(-1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-e.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		m, err := sub.Next(ctx)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		err = emit(events.Message{
			Type: events.Type(m.Type), Action: events.Action(m.Action),
			Actor: events.Actor{ID: m.Actor.ID, Attributes: m.Actor.Attributes},
			Scope: m.Scope, Time: m.Time, TimeNano: m.TimeNano,
		})
		if err != nil {
			return err
		}
	}
}

// eventMatches applies the filters of an events call, by Docker's rules: an
// object's own kind is named by ID or name; labels are in the attributes.
func eventMatches(f filter.Args, m event.Message) bool {
	action, _, _ := strings.Cut(m.Action, ":")
	if !f.Exact("type", m.Type) || !f.Exact("scope", m.Scope) || !f.KV("label", m.Actor.Attributes) {
		return false
	}
	if f.Has("event") && !f.Exact("event", m.Action) && !f.Exact("event", action) {
		return false
	}
	for _, kind := range []string{"container", "image", "volume", "network", "daemon"} {
		if !f.Has(kind) {
			continue
		}
		if m.Type != kind {
			// An image filter also takes the events of its containers.
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
	for _, kind := range []string{"config", "node", "plugin", "secret", "service"} {
		if f.Has(kind) {
			return false
		}
	}
	return true
}
