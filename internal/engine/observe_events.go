// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/event"
	"holdfast/internal/shim/proto"
)

// observedEvents stores, in memory, what shims report while an observer runs. The
// journal on disk has one writer, the daemon.
type observedEvents struct {
	mu    sync.Mutex
	list  []event.Message
	grown chan struct{} // closed and replaced when an event is added
}

func newObservedEvents() *observedEvents { return &observedEvents{grown: make(chan struct{})} }

// Append adds an event that a shim reported. It ignores events of the engine itself:
// actions through an observer have no events, as no daemon performed them.
func (o *observedEvents) Append(m event.Message) (bool, error) {
	if m.Source == "" {
		return false, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, m)
	close(o.grown)
	o.grown = make(chan struct{})
	return true, nil
}

// after returns the events after the first n, and a channel that is closed when more
// are added.
func (o *observedEvents) after(n int) ([]event.Message, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.list[n:]), o.grown
}

// Through is 0: what is observed is not recorded, so no shim may discard it.
func (*observedEvents) Through(string) uint64 { return 0 }

// Forget does nothing: an observer removes no container.
func (*observedEvents) Forget(string) {}

// End is not called by an Observer, which hands no client to the event server.
func (o *observedEvents) End() event.Position { return event.Position{} }

// Subscribe is not called by an Observer.
func (o *observedEvents) Subscribe(time.Time, time.Time, func(event.Message) bool) *event.Subscription {
	return nil
}

// past returns the past events: those of the last daemon's journal, and later ones of
// the shims' journals. sources contains the source of every event that was read, so
// that none is sent twice.
func (o *Observer) past(since time.Time, match func(event.Message) bool) (past []event.Message, sources map[string]bool, err error) {
	sources = map[string]bool{}
	past, err = o.history(since, func(m event.Message) bool {
		sources[m.Source] = true
		return match(m)
	})
	if err != nil {
		return nil, nil, err
	}
	for _, a := range o.index.all() {
		entries, err := o.shims.Journal(o.store.RunDir(a.id), 0)
		if err != nil && !errdefs.IsNotFound(err) {
			o.log.Error("the shim's journal can't be read", "container", a.id[:12], "error", err)
		}
		life := a.view.Load().rec.Life
		for _, entry := range entries {
			m := messageOf(a.id, attributesOf(a.spec, a.req), entry, life)
			if entry.Action == proto.ActionExited || sources[m.Source] {
				continue
			}
			sources[m.Source] = true
			if !m.At().Before(since) && match(m) {
				past = append(past, m)
			}
		}
	}
	slices.SortStableFunc(past, func(a, b event.Message) int { return a.At().Compare(b.At()) })
	return past, sources, nil
}

// Events replays the journals and then follows the shims' reports.
func (o *Observer) Events(ctx context.Context, opts EventsOptions, emit func(event.Message) error) error {
	match := func(m event.Message) bool {
		return event.Match(opts.Filters, m) && (opts.Until.IsZero() || !m.At().After(opts.Until))
	}
	past, sources, err := o.past(opts.Since, match)
	if err != nil {
		return err
	}
	for _, m := range past {
		if err := emit(m); err != nil {
			return err
		}
	}
	if !opts.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, opts.Until)
		defer cancel()
	}
	for seen := 0; ; {
		came, more := o.seen.after(seen)
		seen += len(came)
		for _, m := range came {
			if sources[m.Source] || m.At().Before(opts.Since) || !match(m) {
				continue
			}
			if err := emit(m); err != nil {
				return err
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}
