// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOrphansAreToldByTheirNamespaces(t *testing.T) {
	for _, c := range []struct {
		name, status string
		zombie       bool
		depth, inner int
	}{
		{"a child of ours", "Name:\tx\nState:\tZ (zombie)\nNSpid:\t77\n", true, 1, 77},
		{"of a container, its first", "State:\tZ (zombie)\nNSpid:\t77\t1\n", true, 2, 1},
		{"of a container, another", "State:\tZ (zombie)\nNSpid:\t77\t9\n", true, 2, 9},
		{"of a container in a container", "State:\tS (sleeping)\nNSpid:\t77\t9\t4\n", false, 3, 4},
		{"nothing", "", false, 0, 0},
	} {
		zombie, depth, inner := parseStatus([]byte(c.status))
		if zombie != c.zombie || depth != c.depth || inner != c.inner {
			t.Errorf("%s: %v %d %d", c.name, zombie, depth, inner)
		}
	}
}

// sleeper starts a child that ends when its input does.
func sleeper(t testing.TB) (pid int, end func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("cat")
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Close()
		cmd.Wait() // fails if the test has reaped it
	})
	return cmd.Process.Pid, func() { w.Close() }
}

// An ended child among living ones is noticed, left to others at first, and
// reaped after orphanTime. The living ones are left alone.
func TestSweepReapsTheEndedChildAloneAndLate(t *testing.T) {
	living, _ := sleeper(t)
	ended, end := sleeper(t)
	seen := map[int]time.Time{}
	now := time.Now()
	sweepOrphans(seen, now)
	if len(seen) != 0 {
		t.Fatalf("children that run are taken for ended ones: %v", seen)
	}
	end()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, ended, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !hasEnded(unix.P_PID, ended) || hasEnded(unix.P_PID, living) {
		t.Errorf("ended: %v, living: %v", hasEnded(unix.P_PID, ended), hasEnded(unix.P_PID, living))
	}
	sweepOrphans(seen, now)
	if _, ok := seen[ended]; !ok || len(seen) != 1 {
		t.Fatalf("the sweep has noticed %v, want %d", seen, ended)
	}
	sweepOrphans(seen, now.Add(orphanTime-time.Second))
	if !hasEnded(unix.P_PID, ended) {
		t.Fatal("it was reaped before others could do so")
	}
	sweepOrphans(seen, now.Add(orphanTime))
	if hasEnded(unix.P_PID, ended) {
		t.Error("it was not reaped")
	}
	sweepOrphans(seen, now.Add(orphanTime))
	if len(seen) != 0 {
		t.Errorf("what is reaped is remembered: %v", seen)
	}
}

// BenchmarkSweep sweeps with 200 living children, one of which may have ended.
func BenchmarkSweep(b *testing.B) {
	for range 200 {
		sleeper(b)
	}
	for _, c := range []struct {
		name  string
		ended bool
	}{{"none", false}, {"one", true}} {
		b.Run(c.name, func(b *testing.B) {
			if c.ended {
				pid, end := sleeper(b)
				end()
				var info unix.Siginfo
				if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
					b.Fatal(err)
				}
			}
			seen := map[int]time.Time{}
			now := time.Now()
			for b.Loop() {
				sweepOrphans(seen, now)
			}
		})
	}
}
