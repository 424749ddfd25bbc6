// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"
	"time"

	"holdfast/internal/shim/proto"
)

func TestHealthStatusFollowsDockersRules(t *testing.T) {
	type step struct {
		at     time.Duration
		code   int
		status string
		streak int
	}
	tests := []struct {
		name  string
		check proto.Health
		steps []step
	}{
		{"healthy at once", proto.Health{Retries: 3}, []step{{0, 0, healthHealthy, 0}}},
		{"unhealthy after its retries", proto.Health{Retries: 3}, []step{
			{0, 1, healthStarting, 1}, {1, 1, healthStarting, 2}, {2, 1, healthUnhealthy, 3}, {3, 1, healthUnhealthy, 4}}},
		{"one success heals", proto.Health{Retries: 2}, []step{
			{0, 1, healthStarting, 1}, {1, -1, healthUnhealthy, 2}, {2, 0, healthHealthy, 0}, {3, 1, healthHealthy, 1}, {4, 1, healthUnhealthy, 2}}},
		{"failures in the start period don't count", proto.Health{Retries: 1, StartPeriod: 10}, []step{
			{0, 1, healthStarting, 0}, {9, 1, healthStarting, 0}, {10, 1, healthUnhealthy, 1}}},
		{"after a success they do", proto.Health{Retries: 1, StartPeriod: 10}, []step{
			{0, 0, healthHealthy, 0}, {1, 1, healthUnhealthy, 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := &proto.HealthState{Status: healthStarting}
			for i, s := range tt.steps {
				now = nextHealth(tt.check, now, s.at, proto.HealthResult{ExitCode: s.code})
				if now.Status != s.status || now.FailingStreak != s.streak {
					t.Fatalf("step %d: %s %d, want %s %d", i, now.Status, now.FailingStreak, s.status, s.streak)
				}
				if want := min(i+1, healthResults); len(now.Log) != want {
					t.Fatalf("step %d: %d results kept, want %d", i, len(now.Log), want)
				}
			}
		})
	}
}

func TestHealthKeepsTheLastFiveResults(t *testing.T) {
	now := &proto.HealthState{Status: healthStarting}
	for i := range 9 {
		before := len(now.Log)
		next := nextHealth(proto.Health{Retries: 1}, now, 0, proto.HealthResult{ExitCode: i})
		if len(now.Log) != before {
			t.Fatal("nextHealth changed its input, which subscribers share")
		}
		now = next
	}
	if len(now.Log) != healthResults || now.Log[0].ExitCode != 4 || now.Log[4].ExitCode != 8 {
		t.Errorf("log: %+v", now.Log)
	}
}

func TestHealthChecksMoreOftenWhileStarting(t *testing.T) {
	h := withDefaults(proto.Health{StartPeriod: time.Minute})
	starting, healthy := &proto.HealthState{Status: healthStarting}, &proto.HealthState{Status: healthHealthy}
	for _, tt := range []struct {
		now   *proto.HealthState
		since time.Duration
		want  time.Duration
	}{
		{starting, 0, 5 * time.Second},
		{starting, time.Minute, 30 * time.Second},
		{healthy, 0, 30 * time.Second},
	} {
		if got := healthPause(h, tt.now, tt.since); got != tt.want {
			t.Errorf("%s after %v: %v, want %v", tt.now.Status, tt.since, got, tt.want)
		}
	}
}

// TestClockThatIsSetDelaysNoHealthCheck: the pause counts from the last check, and is
// never longer than the interval.
func TestClockThatIsSetDelaysNoHealthCheck(t *testing.T) {
	const interval = time.Second
	now := time.Now().Round(0) // the time of day alone, as in a record
	for name, tt := range map[string]struct {
		began, recorded time.Time
		last            time.Time
		least, most     time.Duration
	}{
		"the last check":                       {now.Add(-time.Hour), now.Add(-time.Minute), time.Now(), interval / 2, interval},
		"the last check, set back":             {now.Add(24 * time.Hour), now, time.Now(), interval / 2, interval},
		"the last check, set forward":          {now.Add(-24 * time.Hour), now.Add(-24 * time.Hour), time.Now(), interval / 2, interval},
		"that of an earlier shim":              {now.Add(-time.Hour), now.Add(-interval / 2), time.Time{}, 0, interval / 2},
		"that of an earlier shim, set back":    {now.Add(23 * time.Hour), now.Add(24 * time.Hour), time.Time{}, interval, interval},
		"that of an earlier shim, set forward": {now.Add(-25 * time.Hour), now.Add(-24 * time.Hour), time.Time{}, 0, 0},
	} {
		c := &healthChecker{health: proto.Health{Interval: interval}, began: tt.began}
		st := &proto.HealthState{Log: []proto.HealthResult{{End: tt.recorded}}}
		if due := c.due(st, tt.last); due < tt.least || due > tt.most {
			t.Errorf("%s: the next check is in %s", name, due)
		}
	}
}
