// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"testing"

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
