// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eventually waits until the watch has read enough for is to be true.
func (w *OOMWatch) eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for {
		w.mu.Lock()
		ok := is()
		w.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("the watch has not seen %s", what)
		}
	}
}

// systemd removes a scope with its counters as soon as its last process has ended,
// before the shim can read them.
func TestOOMKillIsKnownThoughItsCounterIsGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory.events")
	write := func(oom, kills int) {
		t.Helper()
		text := fmt.Sprintf("low 0\nhigh 0\nmax 7\noom %d\noom_kill %d\noom_group_kill 0\n", oom, kills)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name       string
		oom, kills int
		gone       bool // the file is removed before the end of the run
		killed     bool // the process ended by SIGKILL
		want       bool
	}{
		{"counted and gone", 1, 1, true, true, true},
		{"counted and there", 1, 1, false, true, true},
		{"a child was killed, and it ended by itself", 1, 1, true, false, true},
		{"gone before the kill was counted", 1, 0, true, true, true},
		{"out of memory, and nothing was killed", 1, 0, false, true, false},
		{"out of memory, gone, and ended by itself", 1, 0, true, false, false},
		{"killed by a user", 0, 0, true, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(0, 0)
			w := WatchOOM(path, "oom_kill")
			write(c.oom, c.kills)
			w.eventually(t, "the counters", func() bool { return w.kills == c.kills && w.events == c.oom })
			if c.gone {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
			if got := w.End(c.killed); got != c.want {
				t.Errorf("OOM killed: %v", got)
			}
		})
	}
}

// On cgroup v1 the kernel reports an OOM by an eventfd, before it counts the kill.
func TestOOMKillIsKnownOnCgroupV1(t *testing.T) {
	for _, counted := range []bool{true, false} {
		dir := t.TempDir()
		path, register := filepath.Join(dir, "memory.oom_control"), filepath.Join(dir, "cgroup.event_control")
		write := func(kills int) {
			t.Helper()
			if err := os.WriteFile(path, []byte(fmt.Sprintf("oom_kill_disable 0\nunder_oom 0\noom_kill %d\n", kills)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(0)
		if err := os.WriteFile(register, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w := WatchOOM(path, "oom_kill")
		asked, err := os.ReadFile(register)
		if err != nil {
			t.Fatal(err)
		}
		var event, control int
		if _, err := fmt.Fscan(strings.NewReader(string(asked)), &event, &control); err != nil {
			t.Fatalf("registered %q: %v", asked, err)
		}
		if counted {
			write(1)
		}
		if _, err := unix.Write(event, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		w.eventually(t, "the event", func() bool { return w.events == 1 })
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		// The removal of the cgroup is an event too, but not an OOM.
		if _, err := unix.Write(event, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		if !w.End(true) {
			t.Errorf("counted %v: the OOM kill was not found", counted)
		}
		if w.events != 1 {
			t.Errorf("%d events", w.events)
		}
	}
}

func TestWithoutACounterNothingIsFound(t *testing.T) {
	for _, path := range []string{"", filepath.Join(t.TempDir(), "memory.events"), filepath.Join(t.TempDir(), "memory.oom_control")} {
		if WatchOOM(path, "").End(true) {
			t.Errorf("%q: OOM killed", path)
		}
	}
}
