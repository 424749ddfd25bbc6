// SPDX-License-Identifier: Apache-2.0

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
	"holdfast/internal/errs"
	"holdfast/internal/event"
	"holdfast/internal/shim/proto"
)

// A daemon that hands over retires its engine, which from then on only observes, for
// the streams that are still open. The successor's engine is in another process or,
// if the handover has failed, a new one in this process.

// PendingClient is a client that is attached to a container which has not started.
// The daemon has it, because there is no shim yet.
type PendingClient struct {
	Container string
	Attach    proto.Attach
	File      *os.File
}

// Busy returns the names of the containers for which this process performs an
// operation, each with the operation.
func (e *Engine) Busy() []string {
	var names []string
	for _, a := range e.index.all() {
		v := a.view.Load()
		switch v.state {
		case container.Starting, container.Ending, container.Removing:
			names = append(names, v.spec.Name+" ("+v.state.String()+")")
		default:
			if v.due != nil {
				names = append(names, v.spec.Name+" (about to start)")
			} else if v.halting {
				names = append(names, v.spec.Name+" (stopping)")
			}
		}
	}
	slices.Sort(names)
	return names
}

// retireLimit bounds how long Retire waits until the ends of containers are handled
// that were reported just before.
const retireLimit = 5 * time.Second

// Retire makes this engine an observer for good. No request may be under way except
// those that only follow (events, logs, stats, wait), and Busy should have been
// empty just before. The caller owns the files in the result. After an error the
// engine is unusable, and the caller must create another one.
func (e *Engine) Retire(ctx context.Context) ([]PendingClient, error) {
	e.retired.Store(true)
	e.observes.Store(true)
	// Subscribe before anything else, so that no event of the successor is missed.
	sub := e.events.Subscribe(time.Time{}, time.Time{}, func(m event.Message) bool { return m.Type == "container" })
	var clients []PendingClient
	for _, a := range e.index.all() {
		// When this has run, the loop has finished all functions that began before
		// the engine was retired.
		a.await(func() {
			for _, c := range a.clients {
				clients = append(clients, PendingClient{Container: a.id, Attach: c.attach, File: c.client.File})
			}
			a.clients = nil
		})
	}
	// What a container used that has just ended may still be given back.
	deadline := time.NewTimer(retireLimit)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for busy := e.Busy(); len(busy) > 0; busy = e.Busy() {
		select {
		case <-tick.C:
		case <-deadline.C:
			sub.Close()
			return clients, errs.Unavailable("retire the engine: still busy with %v", busy)
		case <-ctx.Done():
			sub.Close()
			return clients, ctx.Err()
		}
	}
	go e.followSuccessor(sub)
	return clients, nil
}

// followSuccessor follows the successor's events, because clients of this engine may
// wait for the end of a container that the successor starts.
func (e *Engine) followSuccessor(sub *event.Subscription) {
	defer sub.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-e.closing
		cancel()
	}()
	go e.restorer.followRecords()
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
			go e.restorer.observeStartedShim(a)
		case proto.ActionDie:
			code, _ := strconv.Atoi(m.Actor.Attributes["exitCode"])
			a.post(func() {
				if a.shim != nil {
					return // the shim reports the end
				}
				a.rec.ExitCode, a.rec.Pid, a.rec.Status, a.rec.Finished = code, 0, proto.StatusExited, m.At()
				a.waiters.ended(a.rec)
				a.step(container.SawExited)
			})
		case proto.ActionDestroy:
			e.restorer.forgetRemoved(a)
		}
	}
}

// TakeClients takes over the clients of a predecessor. It takes ownership of their
// files.
func (e *Engine) TakeClients(clients []PendingClient) error {
	var failed []error
	for _, c := range clients {
		a, err := e.index.find(c.Container)
		if err == nil {
			at := attachment{client: &Client{File: c.File}, attach: c.Attach}
			if a.post(func() { a.join(at) }) {
				continue
			}
			err = errs.NotFound("No such container: %s", c.Container)
		}
		c.File.Close()
		failed = append(failed, fmt.Errorf("a client attached to %s was disconnected: %w", c.Container, err))
	}
	return errors.Join(failed...)
}

// Leave ends everything that a retired engine follows. The shims run on.
func (e *Engine) Leave() {
	e.progress.close()
	for _, a := range e.index.all() {
		a.await(func() {
			if a.shim != nil {
				a.shim.Close()
				a.shim = nil
				a.enter(container.Phase{State: a.phase.State})
			}
			a.descriptors.close()
		})
	}
}

// Running returns how many containers have a process, or may have one.
func (e *Engine) Running() int {
	n := 0
	for _, a := range e.index.all() {
		if a.view.Load().state.Alive() {
			n++
		}
	}
	return n
}
