// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"time"

	"holdfast/internal/container"
	"holdfast/internal/shim/proto"
)

// lag is a state of the shim that the daemon does not know yet.
type lag struct {
	last proto.State
	done chan struct{} // closed when the daemon knows it
}

// over reports whether the lag is over, in the loop, and then closes done. An end is
// known when the next request can succeed.
func (l *lag) over(a *actor) bool {
	switch {
	case a.rec.Life == l.last.Life && (a.rec.Seq < l.last.Seq || a.phase.State == container.Ending):
		return false
	case a.rec.Life == l.last.Life && recordOf(a.rec) == container.RecordExited && a.phase.State.Alive():
		return false // the shim's last report follows
	}
	close(l.done)
	return true
}

// awaitRecord returns a channel that is closed when the daemon knows the state that
// last returns, or when the container is removed. It calls last in the loop.
func awaitRecord(a *actor, last func() proto.State) <-chan struct{} {
	l := &lag{done: make(chan struct{})}
	a.post(func() {
		l.last = last()
		if !l.over(a) {
			a.lags = append(a.lags, l)
		}
	})
	known := make(chan struct{})
	go func() {
		defer close(known)
		select {
		case <-l.done:
		case <-a.quit:
		}
	}()
	return known
}

// endDelay bounds how long the answer to a request waits for the report of an end.
const endDelay = 10 * time.Second

// awaitEnd is called when a shim has refused a call. If it did so because the
// container's process has ended, awaitEnd waits until the daemon knows of that end:
// the client must not find the container running after it got the answer.
func awaitEnd(ctx context.Context, a *actor, shim Shim) {
	ctx, cancel := context.WithTimeout(ctx, endDelay)
	defer cancel()
	last, err := shim.State(ctx)
	if err != nil || last.Pid != 0 {
		return
	}
	select {
	case <-awaitRecord(a, func() proto.State { return last }):
	case <-shim.Done():
	case <-ctx.Done():
	}
}
