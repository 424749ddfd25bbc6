// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"testing"
	"time"

	"holdfast/internal/shim/proto"
)

func TestRestartPolicyFollowsDockersRules(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name   string
		policy proto.RestartPolicy
		end    ending
		delay  time.Duration
		again  bool
	}{
		{"no policy", proto.RestartPolicy{}, ending{exitCode: 1}, 0, false},
		{"no", proto.RestartPolicy{Name: "no"}, ending{exitCode: 1}, 0, false},
		{"always after success", proto.RestartPolicy{Name: "always"}, ending{}, 100 * ms, true},
		{"always after failure", proto.RestartPolicy{Name: "always"}, ending{exitCode: 1}, 100 * ms, true},
		{"always, stopped by the user", proto.RestartPolicy{Name: "always"}, ending{exitCode: 137, manual: true}, 0, false},
		{"unless-stopped", proto.RestartPolicy{Name: "unless-stopped"}, ending{}, 100 * ms, true},
		{"unless-stopped, stopped by the user", proto.RestartPolicy{Name: "unless-stopped"}, ending{manual: true}, 0, false},
		{"on-failure after success", proto.RestartPolicy{Name: "on-failure"}, ending{}, 0, false},
		{"on-failure without a limit", proto.RestartPolicy{Name: "on-failure"}, ending{exitCode: 1, restarts: 1000, last: time.Minute}, time.Minute, true},
		{"on-failure:3, third restart", proto.RestartPolicy{Name: "on-failure", MaxRetries: 3}, ending{exitCode: 1, restarts: 2, last: 200 * ms}, 400 * ms, true},
		{"on-failure:3, used up", proto.RestartPolicy{Name: "on-failure", MaxRetries: 3}, ending{exitCode: 1, restarts: 3, last: 400 * ms}, 0, false},
		{"on-failure, stopped by the user", proto.RestartPolicy{Name: "on-failure"}, ending{exitCode: 143, manual: true}, 0, false},
		{"delay doubles", proto.RestartPolicy{Name: "always"}, ending{last: 100 * ms, ran: 9 * time.Second}, 200 * ms, true},
		{"delay has a cap", proto.RestartPolicy{Name: "always"}, ending{last: 51200 * ms}, time.Minute, true},
		{"delay stays at the cap", proto.RestartPolicy{Name: "always"}, ending{last: time.Minute}, time.Minute, true},
		{"ten good seconds reset it", proto.RestartPolicy{Name: "always"}, ending{last: time.Minute, ran: 10 * time.Second}, 100 * ms, true},
		{"unknown name", proto.RestartPolicy{Name: "sometimes"}, ending{exitCode: 1}, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			delay, again := restartAfter(tt.policy, tt.end)
			if delay != tt.delay || again != tt.again {
				t.Errorf("got %v %v, want %v %v", delay, again, tt.delay, tt.again)
			}
		})
	}
}

// TestClockThatIsSetChangesNoRestartDelay: the delay that this shim has begun counts by
// the monotonic clock. One that an earlier shim has begun is never longer than it was.
func TestClockThatIsSetChangesNoRestartDelay(t *testing.T) {
	const delay = time.Minute
	now := time.Now()
	for name, tt := range map[string]struct {
		due, recorded time.Time
		least, most   time.Duration
	}{
		"begun here":                         {now.Add(delay), now.Round(0).Add(delay), delay / 2, delay},
		"begun here, set forward":            {now.Add(delay), now.Round(0).Add(delay - 24*time.Hour), delay / 2, delay},
		"begun here, set back":               {now.Add(delay), now.Round(0).Add(delay + 24*time.Hour), delay / 2, delay},
		"begun by an earlier shim":           {time.Time{}, now.Round(0).Add(delay / 2), delay / 4, delay / 2},
		"begun by an earlier shim, set back": {time.Time{}, now.Round(0).Add(24 * time.Hour), delay, delay},
	} {
		if pause := pauseUntil(tt.due, tt.recorded, delay); pause < tt.least || pause > tt.most {
			t.Errorf("%s: the next run begins in %s", name, pause)
		}
	}
}

// TestAgeOfARunIsThatOfItsProcess: whatever the clock shows now, and showed when it began.
func TestAgeOfARunIsThatOfItsProcess(t *testing.T) {
	self := startTime(os.Getpid())
	if self == 0 {
		t.Fatal("no start time of this process")
	}
	now := time.Now().Round(0)
	for name, tt := range map[string]struct {
		started time.Time
		start   uint64
		most    time.Duration
	}{
		"right":                        {now, self, 10 * time.Minute},
		"set back":                     {now.Add(24 * time.Hour), self, 10 * time.Minute},
		"set forward":                  {now.Add(-24 * time.Hour), self, 10 * time.Minute},
		"unknown start time":           {now.Add(-time.Minute), 0, 10 * time.Minute},
		"unknown start time, set back": {now.Add(24 * time.Hour), 0, time.Minute},
	} {
		if age := time.Since(resumedRun(nil, nil, nil, tt.started, tt.start).began); age < 0 || age > tt.most {
			t.Errorf("%s: %s", name, age)
		}
	}
}
