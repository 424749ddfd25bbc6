package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"holdfast/internal/container"
	"holdfast/internal/event"
	"holdfast/internal/shim/proto"
)

// A daemon that hands over retires its engine: from then on that one is an
// observer, for the streams that are still open. The successor's engine is
// another process's, or, when the handover failed, a new one in this process.

// PendingClient is a client that is attached to a container that has not
// started. It belongs to the daemon, as there is no shim yet.
type PendingClient struct {
	Container string
	Attach    proto.Attach
	File      *os.File
}

// Busy names the containers that are between two states: something is being
// done for them in this process.
func (e *Engine) Busy() []string {
	var names []string
	for _, a := range e.index.all() {
		v := a.view.Load()
		switch v.state {
		case container.Starting, container.Stopping, container.Removing:
			names = append(names, v.spec.Name+" ("+v.state.String()+")")
		}
	}
	slices.Sort(names)
	return names
}

// retireLimit is how long a container's end that was seen just before may take
// to be dealt with.
const retireLimit = 5 * time.Second

// Retire ends this engine's right to change anything. No request may be under
// way but those that only follow (events, logs, stats, wait), and Busy should
// have been empty just before. The files in the answer are the caller's. On an
// error the engine is of no use any more: another must be made in its place.
func (e *Engine) Retire(ctx context.Context) ([]PendingClient, error) {
	e.retired.Store(true)
	e.observes.Store(true)
	// From here on, without a gap: what the successor does is in the journal.
	follow := e.events.Subscribe(time.Time{}, time.Time{}, func(m event.Message) bool { return m.Type == "container" })
	var clients []PendingClient
	for _, a := range e.index.all() {
		// After this no function of the loop is under way that was begun with
		// the right to change something.
		a.await(func() {
			for _, c := range a.clients {
				clients = append(clients, PendingClient{Container: a.id, Attach: c.attach, File: c.client.File})
			}
			a.clients = nil
		})
	}
	// What ended in the last instant may still be given back.
	deadline := time.NewTimer(retireLimit)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for busy := e.Busy(); len(busy) > 0; busy = e.Busy() {
		select {
		case <-tick.C:
		case <-deadline.C:
			follow.Close()
			return clients, unavailable("retire the engine: still busy with %v", busy)
		case <-ctx.Done():
			follow.Close()
			return clients, ctx.Err()
		}
	}
	go e.followSuccessor(follow)
	return clients, nil
}

// followSuccessor learns what becomes of containers that this engine has no
// shim of, because the successor started them: their ends are waited for here.
func (e *Engine) followSuccessor(sub *event.Subscription) {
	defer sub.Close()
	ctx, cancel := context.WithCancel(context.Background())
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
		if err != nil {
			return
		}
		a, err := e.index.find(m.Actor.ID)
		if err != nil {
			continue
		}
		switch m.Action {
		case proto.ActionStart:
			go a.meetShim(ctx)
		case proto.ActionDie:
			code, _ := strconv.Atoi(m.Actor.Attributes["exitCode"])
			a.post(func() {
				if a.shim != nil {
					return // it says so itself
				}
				a.rec.ExitCode, a.rec.Pid, a.rec.Status, a.rec.Finished = code, 0, proto.StatusExited, m.At()
				a.tell(a.rec)
				a.to(container.Exited)
			})
		case proto.ActionDestroy:
			a.post(func() {
				if a.state != container.Removing {
					a.vanish()
				}
			})
		}
	}
}

// meetShim follows a shim that another daemon has started.
func (a *actor) meetShim(ctx context.Context) {
	if a.view.Load().shim != nil {
		return
	}
	f := a.e.look(ctx, a)
	if f.shim == nil {
		return // it has ended already, which the journal tells
	}
	met := a.post(func() {
		if a.shim != nil || a.state == container.Removing {
			f.shim.Close()
			return
		}
		a.spec.Life = f.rec.Life
		a.e.show(a, f)
		a.to(a.state)
	})
	if !met {
		f.shim.Close()
	}
}

// TakeClients takes over the clients of a predecessor. It takes charge of their
// files.
func (e *Engine) TakeClients(clients []PendingClient) error {
	var errs []error
	for _, c := range clients {
		a, err := e.index.find(c.Container)
		if err == nil {
			at := attachment{client: &Client{File: c.File}, attach: c.Attach}
			if a.post(func() { a.join(at) }) {
				continue
			}
			err = notFound("No such container: %s", c.Container)
		}
		c.File.Close()
		errs = append(errs, fmt.Errorf("a client of %s is lost: %w", c.Container, err))
	}
	return errors.Join(errs...)
}

// Leave ends what a retired engine follows. The shims go on.
func (e *Engine) Leave() {
	e.closeOnce.Do(func() { close(e.closing) })
	for _, a := range e.index.all() {
		a.await(func() {
			if a.shim != nil {
				a.shim.Close()
				a.shim = nil
				a.publish()
			}
			a.held.mu.Lock()
			defer a.held.mu.Unlock()
			a.drop()
		})
	}
}
