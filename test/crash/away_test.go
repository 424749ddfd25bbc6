// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// Containers end, restart and are checked while no daemon lives, just as under
// a daemon. The next daemon reports each event once, with its own time.
func TestWhatHappensWithoutADaemonIsToldOnceByTheNext(t *testing.T) {
	t.Parallel()
	d := live(t)
	word := d.Root + "/word"
	if err := os.Mkdir(word, 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		script := args[len(args)-1]
		args = append([]string{"run", "-d", "--name", name, "-v", word + ":/word"}, args[:len(args)-1]...)
		return d.Holdfast(append(args, image, "sh", "-c", "while [ ! -e /word/go ]; do sleep 0.01; done; "+script)...)
	}
	ids := map[string]string{
		"ends":    run("ends", "exit 42"),
		"killed":  run("killed", "exec sleep 1000"),
		"fails":   run("fails", "--restart", "on-failure:3", "exit 5"),
		"works":   run("works", "--restart", "on-failure:3", "exit 0"),
		"always":  run("always", "--restart", "always", "if [ -e /word/again ]; then exec sleep 1000; fi; touch /word/again; exit 0"),
		"unless":  run("unless", "--restart", "unless-stopped", "if [ -e /word/twice ]; then exec sleep 1000; fi; touch /word/twice; exit 1"),
		"away":    run("away", "--rm", "-v", "/data", "-p", "127.0.0.1::80", "echo gone; exit 3"),
		"hungry":  run("hungry", "--memory", "16m", "--memory-swap", "16m", "exec tail /dev/zero"),
		"healthy": run("healthy", "--health-cmd", "test -e /word/go", "--health-interval", "100ms", "--health-retries", "2", "exec sleep 1000"),
	}
	if got := d.Holdfast("inspect", "-f", "{{.State.Health.Status}}", "healthy"); got == "healthy" {
		t.Errorf("health is %s too early", got)
	}
	d.Kill9()
	down := time.Now()
	if err := os.WriteFile(word+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kit.Kill(t, record(d, ids["killed"]).Pid)
	for _, name := range []string{"ends", "killed", "fails", "works", "hungry"} {
		kit.Eventually(t, name+" ends", func() bool { return record(d, ids[name]).Status == proto.StatusExited })
	}
	kit.Eventually(t, "the removal by --rm", func() bool { return record(d, ids["away"]).Status == proto.StatusRemoved })
	for _, name := range []string{"always", "unless"} {
		kit.Eventually(t, name+" comes back", func() bool {
			st := record(d, ids[name])
			return st.RestartCount == 1 && st.Status == proto.StatusRunning
		})
	}
	kit.Eventually(t, "health advances", func() bool {
		h := record(d, ids["healthy"]).Health
		return h != nil && h.Status == "healthy"
	})
	for name, id := range ids {
		if st := record(d, id); st.Status == proto.StatusExited && len(kit.Shims(t, id)) > 0 {
			kit.Eventually(t, "the shim of "+name+" ends", func() bool { return len(kit.Shims(t, id)) == 0 })
		}
	}
	up := time.Now()
	d.Start()

	for name, want := range map[string]struct{ code, restarts int }{"ends": {42, 0}, "killed": {137, 0}, "fails": {5, 3}, "works": {0, 0}, "hungry": {137, 0}} {
		c := d.Inspect(name)
		if c.State.Status != "exited" || c.State.ExitCode != want.code || c.RestartCount != want.restarts || c.State.OOMKilled != (name == "hungry") {
			t.Errorf("%s: %s with %d after %d restarts, OOM %v", name, c.State.Status, c.State.ExitCode, c.RestartCount, c.State.OOMKilled)
		}
		finished, err := time.Parse(time.RFC3339Nano, c.State.FinishedAt)
		if err != nil || finished.Before(down) || finished.After(up) {
			t.Errorf("%s: ended at %s, which is not between %s and %s", name, c.State.FinishedAt, down, up)
		}
	}
	for _, name := range []string{"always", "unless"} {
		if c := d.Inspect(name); !c.State.Running || c.RestartCount != 1 {
			t.Errorf("%s: %s after %d restarts", name, c.State.Status, c.RestartCount)
		}
	}
	if c := d.Inspect("healthy"); c.State.Health == nil || c.State.Health.Status != "healthy" {
		t.Errorf("health: %+v", c.State.Health)
	}
	kit.Eventually(t, "the container with --rm is removed", func() bool { return status(d, "away") == "gone" })
	if got := d.Holdfast("volume", "ls", "-q"); got != "" {
		t.Errorf("volumes are left: %s", got)
	}
	for _, path := range []string{d.DataRoot + "/containers/" + ids["away"], d.ExecRoot + "/shim/" + ids["away"]} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}

	// The events come from this daemon, and unrepeated from the next one.
	told := func() string {
		t.Helper()
		var out []string
		for name, id := range ids {
			var actions []string
			last := int64(0)
			for _, m := range events(t, d, down, "container="+id) {
				if strings.HasPrefix(m.Action, "exec_") {
					continue // of health checks
				}
				at := time.Unix(0, m.TimeNano)
				if at.Before(down) || m.Action != "destroy" && at.After(up) {
					t.Errorf("%s: %s at %s, not between %s and %s", name, m.Action, at, down, up)
				}
				if m.TimeNano < last {
					t.Errorf("%s: %s is out of order", name, m.Action)
				}
				last = m.TimeNano
				if code := m.Actor.Attributes["exitCode"]; code != "" {
					m.Action += "=" + code
				}
				actions = append(actions, m.Action)
			}
			out = append(out, fmt.Sprintf("%s: %s", name, strings.Join(actions, " ")))
		}
		slices.Sort(out)
		return strings.Join(out, "\n")
	}
	const want = `always: die=0 start
away: die=3 destroy
ends: die=42
fails: die=5 start die=5 start die=5 start die=5
healthy: health_status: healthy
hungry: oom die=137
killed: die=137
unless: die=1 start
works: die=0`
	if got := told(); got != want {
		t.Errorf("events\n%s\nwant\n%s", got, want)
	}
	d.Kill9()
	d.Start()
	if got := told(); got != want {
		t.Errorf("events of the next daemon\n%s\nwant\n%s", got, want)
	}
	// The delays are those of Docker: they double from 100 ms. On a busy
	// machine a start takes some seconds more.
	var starts []time.Time
	for _, m := range events(t, d, down, "container="+ids["fails"]) {
		if m.Action == "start" || m.Action == "die" {
			starts = append(starts, time.Unix(0, m.TimeNano))
		}
	}
	for i, want := range []time.Duration{100, 200, 400} {
		if len(starts) < 2*i+2 {
			break
		}
		if got := starts[2*i+1].Sub(starts[2*i]); got < want*time.Millisecond || got > want*time.Millisecond+30*time.Second {
			t.Errorf("restart %d came after %s", i+1, got)
		}
	}
}

// Health checks keep their count of failures, whether a daemon lives or not.
func TestHealthChecksGoOnOverRestarts(t *testing.T) {
	t.Parallel()
	d := live(t)
	word := d.Root + "/word"
	if err := os.Mkdir(word, 0o755); err != nil {
		t.Fatal(err)
	}
	id := d.Holdfast("run", "-d", "--name", "checked", "-v", word+":/word", "--health-cmd", "test ! -e /word/sick",
		"--health-interval", "50ms", "--health-retries", "1", image, "sleep", "1000")
	health := func(want string) {
		t.Helper()
		kit.Eventually(t, "it is "+want, func() bool { return d.Holdfast("inspect", "-f", "{{.State.Health.Status}}", "checked") == want })
	}
	health("healthy")
	d.Kill9()
	if err := os.WriteFile(word+"/sick", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "the container becomes unhealthy while no daemon lives", func() bool { return record(d, id).Health.Status == "unhealthy" })
	d.Start()
	if got := d.Holdfast("ps", "--filter", "health=unhealthy", "-q"); !strings.HasPrefix(id, got) || got == "" {
		t.Errorf("ps: %q", got)
	}
	if err := os.Remove(word + "/sick"); err != nil {
		t.Fatal(err)
	}
	health("healthy")
	d.Restart()
	if err := os.WriteFile(word+"/sick", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	health("unhealthy")
}

// A volume is in use as long as a container has it among its mounts, also if the
// container is stopped and however often the daemon has died since.
func TestPruneKeepsVolumesThatAreInUse(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Holdfast("volume", "create", "unused")
	d.Holdfast("run", "-d", "--name", "user", "-v", "/anonymous", "-v", "named:/named", image, "sh", "-c", "echo kept >/anonymous/a; echo kept >/named/a; exec sleep 1000")
	d.Holdfast("create", "--name", "idle", "-v", "idle:/idle", "-v", "/too", image)
	d.Holdfast("volume", "create") // anonymous and unused
	before := len(strings.Fields(d.Holdfast("volume", "ls", "-q")))
	for range 2 {
		d.Kill9()
		d.Start()
		d.Holdfast("volume", "prune", "-f", "-a")
		if got := len(strings.Fields(d.Holdfast("volume", "ls", "-q"))); got != before-2 {
			t.Errorf("%d of %d volumes remain, want %d", got, before, before-2)
		}
		if r := d.TryHoldfast("volume", "rm", "named"); r.Code == 0 || !strings.Contains(r.Stderr, "volume is in use") {
			t.Errorf("%+v", r)
		}
	}
	if got := d.Holdfast("exec", "user", "cat", "/anonymous/a", "/named/a"); got != "kept\nkept" {
		t.Errorf("the volumes hold %q", got)
	}
}

// --rm is neither forgotten nor carried out too early.
func TestAutoRemoveAcrossRestarts(t *testing.T) {
	t.Parallel()
	d := live(t)
	id := d.Holdfast("run", "-d", "--rm", "--name", "brief", "-v", "/data", image, "sleep", "1000")
	d.Kill9()
	d.Start()
	if got := status(d, "brief"); got != "running" {
		t.Errorf("the container is %s", got)
	}
	d.Holdfast("restart", "-t", "0", "brief")
	if got := status(d, "brief"); got != "running" {
		t.Errorf("after a restart the container is %s", got)
	}
	d.Holdfast("stop", "-t", "0", "brief")
	kit.Eventually(t, "the container is removed", func() bool { return status(d, "brief") == "gone" })
	if got := d.Holdfast("volume", "ls", "-q"); got != "" {
		t.Errorf("volumes are left: %s", got)
	}
	if n := count(events(t, d, time.Unix(1, 0), "container="+id), "destroy"); n != 1 {
		t.Errorf("destroyed %d times", n)
	}
}
