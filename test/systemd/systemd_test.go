// SPDX-License-Identifier: Apache-2.0

// Package systemd tests a daemon that is a service of systemd. The tests play
// systemd.
package systemd

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/client"
	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

const image = "busybox:test"

// trapping is a container that exits only on its stop signal, and prints a last
// line.
var trapping = []string{"--stop-signal", "USR1", image, "sh", "-c", "trap 'echo bye; exit 7' USR1; trap '' TERM; echo up; while :; do sleep 0.05; done"}

func TestContainersEndByTheirOwnSignalsWhenTheSystemGoesDown(t *testing.T) {
	t.Parallel()
	s := start(t)
	d := s.d
	d.Load(image, kit.Busybox(t, nil))
	d.Docker(append([]string{"run", "-d", "--name", "traps"}, trapping...)...)
	d.Docker(append([]string{"run", "-d", "--name", "comes-back", "--restart", "always"}, trapping...)...)
	d.Docker("run", "-d", "--name", "deaf", "--stop-timeout", "1", "--restart", "unless-stopped", image, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
	for _, name := range []string{"traps", "comes-back"} {
		until(t, func() bool { return strings.Contains(d.Docker("logs", name), "up") })
	}
	id := d.Docker("inspect", "-f", "{{.Id}}", "traps")

	// Only the service stops, so live restore applies.
	before := d.Docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "traps", "comes-back", "deaf")
	d.Restart()
	if after := d.Docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "traps", "comes-back", "deaf"); after != before {
		t.Errorf("the containers changed when the service stopped:\n%s\n%s", before, after)
	}

	s.set(func() { s.state = "stopping" })
	d.Term()
	if left := shims(d); len(left) > 0 {
		t.Errorf("shims are left: %v", left)
	}
	st, err := client.ReadExit(filepath.Join(d.DataRoot, "containers", id))
	if err != nil || st.ExitCode != 7 {
		t.Errorf("the exit record has the code %d: %v", st.ExitCode, err)
	}
	s.set(func() { s.state = "running" })
	d.Start()
	if got := d.Docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "traps"); got != "exited 7" {
		t.Errorf("the container is %s, want exited 7", got)
	}
	if got := d.Docker("logs", "traps"); got != "up\nbye" {
		t.Errorf("its last words: %q", got)
	}
	for _, name := range []string{"comes-back", "deaf"} {
		until(t, func() bool { return d.Docker("inspect", "-f", "{{.State.Status}}", name) == "running" })
	}
}

// If systemd accepts the call and does not answer, the stop is delayed for a
// moment, and otherwise unchanged.
func TestStopGoesOnWithoutAnAnswerOfSystemd(t *testing.T) {
	t.Parallel()
	s := start(t)
	d := s.d
	d.Load(image, kit.Busybox(t, nil))
	d.Docker(append([]string{"run", "-d", "--name", "held"}, trapping...)...)
	before := d.Docker("inspect", "-f", "{{.State.Pid}}", "held")
	s.set(func() { s.silent = true })
	d.Term()
	if !strings.Contains(d.Log(), "it is not known whether the system goes down") {
		t.Error("the log does not say that systemd did not answer")
	}
	s.set(func() { s.silent = false })
	d.Start()
	if after := d.Docker("inspect", "-f", "{{.State.Pid}}", "held"); after != before {
		t.Errorf("pid %s before and %s after", before, after)
	}
}

func TestShimsHaveAScopeOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := start(t)
	d := s.d
	d.Load(image, kit.Busybox(t, nil))
	run := func(name string) { d.Docker("run", "-d", "--name", name, image, "sleep", "1000") }
	run("one")
	run("two")
	scoped := func(n int) func() bool {
		return func() bool {
			found := shims(d)
			return len(found) == n && !slices.ContainsFunc(found, func(pid int) bool { return !s.holds(s.scope(), pid) })
		}
	}
	until(t, scoped(2))
	if !s.holds(s.unit(), d.Pid()) {
		t.Error("the daemon has left its unit")
	}
	// The event server outlives the daemon, too.
	events := d.DockerCommand(t.Context(), "events")
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool {
		found := kit.EventServers(t, d)
		return len(found) == 1 && s.holds(s.scope(), found[0])
	})
	_ = events.Process.Kill()
	_ = events.Wait()
	s.set(func() {
		for name, want := range map[string]any{"Slice": d.ID + ".slice", "Delegate": true, "DefaultDependencies": false} {
			if got := s.properties[name].Value(); name != "Slice" && got != want {
				t.Errorf("the scope has %s=%v, want %v", name, got, want)
			}
		}
	})

	d.Kill9()
	// An earlier release left its shims in the daemon's unit.
	if err := s.move(s.path(s.unit()), []uint32{uint32(shims(d)[0])}); err != nil {
		t.Fatal(err)
	}
	d.Start()
	until(t, scoped(2))
	run("three")
	until(t, scoped(3))

	d.Docker("rm", "-f", "one", "two", "three")
	until(t, scoped(0))
	run("four") // the scope was removed with its last process
	until(t, scoped(1))
}

// holds reports whether a process is in a unit.
func (s *systemd) holds(unit string, pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	return err == nil && strings.Contains(string(b), "/"+unit+"\n")
}

// shims returns the pids of the daemon's shims.
func shims(d *kit.Daemon) (pids []int) {
	dirs, _ := filepath.Glob(d.ExecRoot + "/shim/*")
	for _, dir := range dirs {
		link := filepath.Base(dir)
		procs, _ := filepath.Glob("/proc/[0-9]*")
		for _, p := range procs {
			if b, err := os.ReadFile(p + "/cmdline"); err == nil && strings.HasPrefix(string(b), "holdfast-shim\x00"+link) {
				pid, _ := strconv.Atoi(filepath.Base(p))
				if unix.Kill(pid, 0) == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

const patience = time.Minute

// until polls until a condition holds.
func until(t *testing.T, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(patience); !is(); <-tick.C {
		if time.Now().After(late) {
			t.Fatal("timeout waiting for the condition")
		}
	}
}
