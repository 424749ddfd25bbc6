// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"

	"holdfast/internal/errs"
	"holdfast/internal/event"
	"holdfast/internal/eventserver"
)

// eventStreams serves clients that follow events.
type eventStreams struct {
	*progress
	events Events
	server EventServer // may be nil
	log    *slog.Logger
	// listeners counts the clients of Events.
	listeners atomic.Int64
}

// Events replays the journal from Since on, in the order of the events' own times.
// It then follows the journal until Until, or until the context or the daemon
// ends.
func (s *eventStreams) Events(ctx context.Context, o EventsOptions, emit func(event.Message) error) error {
	if err := o.Filters.Check(event.Filters...); err != nil {
		return errs.Invalid("%v", err)
	}
	sub := s.events.Subscribe(o.Since, o.Until, func(m event.Message) bool { return event.Match(o.Filters, m) })
	defer sub.Close()
	s.listeners.Add(1)
	defer s.listeners.Add(-1)
	sub.EndWith(s.closing)
	for {
		m, err := sub.Next(ctx)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := emit(m); err != nil {
			return err
		}
	}
}

// GiveEvents hands a client that follows events to the event server, which serves
// it even after this daemon has ended. It returns false, without an effect, if
// the caller has to serve the client by Events.
func (s *eventStreams) GiveEvents(o GiveEventsOptions) (bool, error) {
	if err := o.Filters.Check(event.Filters...); err != nil {
		return false, errs.Invalid("%v", err)
	}
	if s.server == nil || s.observes.Load() {
		return false, nil
	}
	r := eventserver.Request{
		From: s.events.End(), Since: o.Since, Until: o.Until, Filters: o.Filters,
		Legacy: o.Legacy, Sequence: o.Sequence,
	}
	if !eventserver.Fits(r) {
		return false, nil
	}
	if err := s.server.Ready(); err != nil {
		s.log.Warn("the event server can't be started: the client's events end when this daemon ends", "error", err)
		return false, nil
	}
	c, head, err := o.Hijack()
	if err != nil {
		return false, err
	}
	defer c.File.Close()
	r.Head = head
	return true, s.server.Serve(c.File, r)
}

// count counts the clients of events that this daemon knows. It does not
// include clients that an earlier daemon passed to its event server.
func (s *eventStreams) count() int {
	n := int(s.listeners.Load())
	if s.server != nil {
		n += s.server.Clients()
	}
	return n
}
