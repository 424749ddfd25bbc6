// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
)

// scheduler starts containers by their restart policies.
type scheduler struct {
	*progress
	index *index
}

// startByPolicy starts the container if its restart policy asks for it, in the loop.
func (s *scheduler) startByPolicy(a *actor, b container.Begin) {
	if s.observes.Load() {
		return
	}
	rec := a.exit()
	if container.ShouldRun(b, a.spec.Restart, a.spec.Desired, a.hasRun(), rec.ExitCode, rec.RestartCount) {
		s.scheduleStart(a)
	}
}

// scheduleStart starts the container from another goroutine. It is called in the loop
// or before the loop runs. Until the start is over, Busy reports the container.
func (s *scheduler) scheduleStart(a *actor) {
	over := make(chan struct{})
	a.due = over
	a.publish()
	go func() {
		defer close(over)
		s.runScheduledStart(a)
		a.post(func() {
			a.due = nil
			a.publish()
		})
	}()
}

// joinTries is how often a start is tried that fails for a container which joins
// others, for another reason than that they do not run. A container that it joins may
// have been dying, and the runtime does not say so.
const joinTries = 4

// runScheduledStart starts the container once the restore is done. While containers
// that it joins are about to run, it retries with a backoff.
func (s *scheduler) runScheduledStart(a *actor) {
	if err := s.ready(context.Background()); err != nil {
		return
	}
	began := time.Now()
	failed := 0
	for wait := (backoff{peerFirst, peerMost}); ; {
		req := a.view.Load().req
		coming := s.awaitPeers(req)
		err := a.start(context.Background())
		if err == nil || errors.Is(err, errNothing) {
			return
		}
		again := coming
		if !errdefs.IsConflict(err) {
			failed++
			again = len(joinsOf(req)) > 0 && failed < joinTries
		}
		if !again || time.Since(began) > peerTime {
			a.log.Error("the start by the restart policy failed", "error", err)
			return
		}
		if !wait.wait(a) {
			return
		}
	}
}
