// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"holdfast/internal/container"
	"holdfast/internal/event"
	"holdfast/internal/timeline"
)

// DaemonTimeline returns the lives of daemons and containers from since to now. With
// the zero time it begins at the first record.
func (e *Engine) DaemonTimeline(ctx context.Context, since time.Time) (timeline.Timeline, error) {
	now := time.Now()
	sub := e.events.Subscribe(time.Time{}, now, timeline.Wanted)
	defer sub.Close()
	var past []event.Message
	for {
		m, err := sub.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return timeline.Timeline{}, fmt.Errorf("read the events: %w", err)
		}
		past = append(past, m)
	}
	return timeline.Build(e.lives.List(), past, e.present(), since, now, false), nil
}

// DaemonTimeline returns the timeline from files: the last daemon's journal, and the
// shims' journals for later events.
func (o *Observer) DaemonTimeline(_ context.Context, since time.Time) (timeline.Timeline, error) {
	past, _, err := o.past(time.Time{}, timeline.Wanted)
	if err != nil {
		return timeline.Timeline{}, err
	}
	return timeline.Build(o.lives.(observedLives).Lives.List(), past, o.present(), since, time.Now(), true), nil
}

// present returns the present state of the containers.
func (e *Engine) present() []timeline.Present {
	var list []timeline.Present
	for _, a := range e.index.all() {
		v := a.view.Load()
		rec := v.exit()
		list = append(list, timeline.Present{
			ID: a.id, Name: v.spec.Name, Image: v.req.Config.Image, Created: v.spec.Created,
			Running: v.state.Alive() && v.state != container.Starting && v.state != container.Restarting,
			Started: rec.Started, Finished: rec.Finished, ExitCode: rec.ExitCode,
		})
	}
	return list
}
