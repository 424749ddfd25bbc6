// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"testing"
	"time"

	"holdfast/internal/container"
	"holdfast/internal/shim/proto"
)

// TestReportOlderThanAnAnswerChangesNoState: a container whose pause was answered is not
// shown as running because of a report that the shim has sent before the pause.
func TestReportOlderThanAnAnswerChangesNoState(t *testing.T) {
	paused := proto.State{Life: 2, Seq: 7, Status: proto.StatusPaused}
	for name, tt := range map[string]struct {
		reported proto.State
		want     bool
	}{
		"a report from before the pause":       {proto.State{Life: 2, Seq: 6, Status: proto.StatusRunning}, true},
		"the report of the pause":              {paused, false},
		"a health result after it":             {proto.State{Life: 2, Seq: 7, Status: proto.StatusPaused}, false},
		"the next report":                      {proto.State{Life: 2, Seq: 8, Status: proto.StatusRunning}, false},
		"a report of a new life, from 1 again": {proto.State{Life: 3, Seq: 1, Status: proto.StatusRunning}, false},
	} {
		if got := outdated(tt.reported, paused); got != tt.want {
			t.Errorf("%s is outdated: %v, want %v", name, got, tt.want)
		}
	}
}

// A daemon that has not restored yet answers from the files, which shims and commands without
// a daemon may have changed since it has read them.
func TestReadersSeeWhatTheFilesHaveSinceTheSnapshot(t *testing.T) {
	state := func(status string, seq uint64) proto.State {
		return proto.State{Life: 2, Seq: seq, Status: status, Started: time.Unix(1, 0)}
	}
	running := &view{state: container.Running, rec: state(proto.StatusRunning, 5)}
	for _, tt := range []struct {
		name string
		rec  proto.State
		v    *view
		want bool
	}{
		{"the same", state(proto.StatusRunning, 5), running, false},
		{"paused since", state(proto.StatusPaused, 5), running, true},
		{"resumed since", state(proto.StatusRunning, 5), &view{state: container.Paused, rec: state(proto.StatusPaused, 5)}, true},
		{"an end", state(proto.StatusExited, 6), running, true},
		{"an end that the loop is handling", state(proto.StatusExited, 6), &view{state: container.Running, rec: state(proto.StatusExited, 6)}, true},
		{"an end that the loop has handled", state(proto.StatusExited, 6), &view{state: container.Exited, rec: state(proto.StatusExited, 6)}, false},
		{"an end that no shim has recorded", state(proto.StatusRunning, 5), &view{state: container.Exited, rec: state(proto.StatusExited, 5)}, false},
		{"an end that was recorded before the number that the loop is handling", state(proto.StatusExited, 6), &view{state: container.Running, rec: state(proto.StatusExited, 7)}, true},
		{"older", state(proto.StatusPaused, 4), running, false},
		{"another life", proto.State{Life: 1, Seq: 9, Status: proto.StatusPaused}, running, false},
	} {
		if got := newer(tt.rec, tt.v); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
