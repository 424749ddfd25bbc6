// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"testing"
	"time"
)

// engineOf is a service that consists only of its locks.
type engineOf struct {
	service
	hangs chan struct{}
}

func (e engineOf) Running() int {
	<-e.hangs
	return 0
}

func (e engineOf) Busy() []string { return nil }

func TestWorksTellsWhatHangs(t *testing.T) {
	open := make(chan struct{})
	close(open)
	for _, tc := range []struct {
		name   string
		engine chan struct{}
		turns  bool
		away   bool
		want   string
	}{
		{name: "all is well", engine: open, turns: true},
		{name: "the engine hangs", engine: make(chan struct{}), turns: true, want: "the engine does not answer"},
		{name: "the main loop hangs", engine: open, want: "the main loop does not respond"},
		{name: "a handover takes long", engine: open, away: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := &daemon{service: engineOf{hangs: tc.engine}, tasks: make(chan func(context.Context))}
			d.away.Store(tc.away)
			patience := 50 * time.Millisecond
			if tc.turns {
				patience = time.Minute
				go func() {
					task := <-d.tasks
					task(t.Context())
				}()
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if tc.want != "" && tc.turns {
				var hurry context.CancelFunc
				ctx, hurry = context.WithTimeout(ctx, 200*time.Millisecond)
				defer hurry()
			}
			err := d.works(ctx)
			if got := message(err); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if tc.engine != open {
				close(tc.engine)
			}
		})
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
