package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"holdfast/internal/event"
	"holdfast/internal/shim/proto"
)

// observedEvents keeps what shims tell while an observer lives. It is no
// journal: those have one writer each, and an observer is none.
type observedEvents struct {
	mu    sync.Mutex
	list  []event.Message
	grown chan struct{} // closed and replaced when something came
}

func newObservedEvents() *observedEvents { return &observedEvents{grown: make(chan struct{})} }

// Append takes what a shim tells. What users do through an observer is told by
// nobody: no daemon was there.
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

// after is what came after the first n, and what is closed when there is more.
func (o *observedEvents) after(n int) ([]event.Message, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.list[n:]), o.grown
}

// Subscribe is not asked for by an Observer.
func (o *observedEvents) Subscribe(time.Time, time.Time, func(event.Message) bool) *event.Subscription {
	return nil
}

// past is what the last daemon's journal tells, and those of the shims for what
// came after; told are the sources of it all.
func (o *Observer) past(since time.Time, match func(event.Message) bool) (past []event.Message, told map[string]bool, err error) {
	told = map[string]bool{}
	past, err = o.history(since, func(m event.Message) bool {
		told[m.Source] = true
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
			m := a.message(entry, life)
			if entry.Action == proto.ActionExited || told[m.Source] {
				continue
			}
			told[m.Source] = true
			if !m.At().Before(since) && match(m) {
				past = append(past, m)
			}
		}
	}
	slices.SortStableFunc(past, func(a, b event.Message) int { return a.At().Compare(b.At()) })
	return past, told, nil
}

// Events replays what the journals hold and follows what the shims tell.
func (o *Observer) Events(ctx context.Context, opts EventsOptions, emit func(events.Message) error) error {
	match := func(m event.Message) bool {
		return eventMatches(opts.Filters, m) && (opts.Until.IsZero() || !m.At().After(opts.Until))
	}
	send := func(m event.Message) error {
		return emit(events.Message{
			Type: events.Type(m.Type), Action: events.Action(m.Action),
			Actor: events.Actor{ID: m.Actor.ID, Attributes: m.Actor.Attributes},
			Scope: m.Scope, Time: m.Time, TimeNano: m.TimeNano,
		})
	}
	past, told, err := o.past(opts.Since, match)
	if err != nil {
		return err
	}
	for _, m := range past {
		if err := send(m); err != nil {
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
			if told[m.Source] || m.At().Before(opts.Since) || !match(m) {
				continue
			}
			if err := send(m); err != nil {
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
