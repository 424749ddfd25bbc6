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
	case a.rec.Life == l.last.Life && recordOf(a.rec).Over() && a.phase.State.Alive():
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

// endDelay bounds how long the answer to a request waits for the report of an end or
// a thaw.
const endDelay = 10 * time.Second

// awaitEnd is called when a shim has refused a call. If it did so because the
// container's process has ended, awaitEnd waits until the daemon knows of that end:
// the client must not find the container running after it got the answer.
func awaitEnd(ctx context.Context, a *actor, shim Shim) {
	awaitShim(ctx, a, shim, func(now proto.State) bool { return now.Pid == 0 })
}

// awaitThaw is called when a shim has sent a signal to a paused container and
// resumed it for that. It waits until the daemon knows: the client must not find the
// container paused after it got the answer.
func awaitThaw(ctx context.Context, a *actor, shim Shim) {
	awaitShim(ctx, a, shim, func(now proto.State) bool { return now.Status != proto.StatusPaused })
}

// awaitShim waits until the daemon knows the shim's present state, if it matters to
// the answer to a request.
func awaitShim(ctx context.Context, a *actor, shim Shim, matters func(proto.State) bool) {
	ctx, cancel := context.WithTimeout(ctx, endDelay)
	defer cancel()
	last, err := shim.State(ctx)
	if err != nil || !matters(last) {
		return
	}
	select {
	case <-awaitRecord(a, func() proto.State { return last }):
	case <-shim.Done():
	case <-ctx.Done():
	}
}
