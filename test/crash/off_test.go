package crash

import (
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// Without live restore SIGTERM stops every container by its own rules: its
// stop signal, its time, then SIGKILL.
func TestWithoutLiveRestoreTermStopsAllByTheirOwnRules(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const obeys = "trap 'exit 3' TERM USR1; echo trapped; while :; do sleep 0.02; done"
	trapped := func(names ...string) {
		for _, name := range names {
			eventually(t, name+" waits for signals", func() bool { return d.Holdfast("logs", name) == "trapped" })
		}
	}
	d.Holdfast("run", "-d", "--name", "term", image, "sh", "-c", obeys)
	d.Holdfast("run", "-d", "--name", "usr1", "--stop-signal", "USR1", image, "sh", "-c", "trap '' TERM; "+strings.Replace(obeys, " TERM", "", 1))
	d.Holdfast("run", "-d", "--name", "deaf", "--stop-timeout", "1", image, "sh", "-c", "trap '' TERM; echo trapped; while :; do sleep 0.02; done")
	d.Holdfast("run", "-d", "--name", "brief", "--rm", "-v", "/data", image, "sh", "-c", obeys)
	d.Holdfast("run", "-d", "--name", "always", "--restart", "always", image, "sh", "-c", obeys)
	d.Holdfast("run", "-d", "--name", "unless", "--restart", "unless-stopped", image, "sh", "-c", obeys)
	d.Holdfast("run", "-d", "--name", "by-hand", "--restart", "unless-stopped", image, "sh", "-c", obeys)
	trapped("by-hand")
	d.Holdfast("stop", "by-hand")
	d.Holdfast("run", "-d", "--name", "frozen", image, "sh", "-c", obeys)
	trapped("frozen", "term", "usr1", "deaf", "brief", "always", "unless")
	d.Holdfast("pause", "frozen")
	pid := inspect(t, d, "deaf").State.Pid

	from := time.Now()
	d.Term()
	if took := time.Since(from); took < time.Second || took > 5*time.Second {
		t.Errorf("it took %s, with one container that needs 1 s", took)
	}
	if alive(pid) {
		t.Error("a container is left running")
	}
	d.Start()
	for name, want := range map[string]string{
		"term": "exited 3", "usr1": "exited 3", "deaf": "exited 137", "frozen": "exited 3", "by-hand": "exited 3",
	} {
		if got := d.Holdfast("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for _, name := range []string{"always", "unless"} {
		eventually(t, name+" is started again", func() bool { return status(d, name) == "running" })
	}
	eventually(t, "--rm is gone", func() bool { return status(d, "brief") == "gone" })
	if got := d.Holdfast("volume", "ls", "-q"); got != "" {
		t.Errorf("volumes are left: %s", got)
	}
}

// shutdown-timeout bounds the whole, for containers that have no time of their
// own.
func TestShutdownIsBoundedByItsTimeout(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{Config: map[string]any{"shutdown-timeout": 1}})
	d.Holdfast("run", "-d", "--name", "deaf", image, "sh", "-c", "trap '' TERM; while :; do sleep 0.02; done")
	pid := inspect(t, d, "deaf").State.Pid
	from := time.Now()
	d.Term()
	if took := time.Since(from); took < 900*time.Millisecond || took > 4*time.Second {
		t.Errorf("it took %s", took)
	}
	if alive(pid) {
		t.Error("the container outlives the daemon, which is not to be without live restore")
	}
}

// After a crash without live restore the next start stops what is left, and
// then applies the restart policies.
func TestWithoutLiveRestoreTheNextStartStopsWhatACrashLeft(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const obeys = "trap 'exit 3' TERM; while :; do sleep 0.02; done"
	pids := map[string]int{}
	for name, args := range map[string][]string{"plain": nil, "brief": {"--rm"}, "always": {"--restart", "always"}, "failure": {"--restart", "on-failure"}} {
		d.Holdfast(append(append([]string{"run", "-d", "--name", name}, args...), image, "sh", "-c", obeys)...)
		pids[name] = inspect(t, d, name).State.Pid
	}
	d.Kill9()
	for name, pid := range pids {
		if !alive(pid) {
			t.Errorf("%s died with the daemon", name)
		}
	}
	d.Start()
	for name, pid := range pids {
		if alive(pid) {
			t.Errorf("%s is left running", name)
		}
	}
	if got := d.Holdfast("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "plain"); got != "exited 3" {
		t.Errorf("plain is %s", got)
	}
	eventually(t, "--rm is gone", func() bool { return status(d, "brief") == "gone" })
	for _, name := range []string{"always", "failure"} {
		eventually(t, name+" is started again", func() bool {
			c := inspect(t, d, name)
			return c.State.Status == "running" && c.State.Pid != pids[name]
		})
		oneOrNone(t, d, name)
	}
}

// SIGHUP is enough: what is killed right after it leaves the containers alone.
func TestLiveRestoreEnabledByHupKeepsTheContainers(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	p := kit.Probe(t, web(t, d, "web", "--stop-timeout", "0"))
	p.WaitAnswer(t)
	before := identity(t, d, "web")
	d.WriteConfig(map[string]any{"live-restore": true, "labels": []string{"a=b"}})
	d.Hup()
	if got := d.Holdfast("info", "-f", "{{.LiveRestoreEnabled}} {{.Labels}}"); got != "true [a=b]" {
		t.Errorf("info: %s", got)
	}
	d.Kill9()
	d.Start()
	if after := identity(t, d, "web"); after != before {
		t.Errorf("was %s, is %s", before, after)
	}
	// And the other way.
	d.WriteConfig(nil)
	d.Hup()
	noFailure(t, p)
	d.Term()
	d.Start()
	if got := status(d, "web"); got != "exited" {
		t.Errorf("with live restore off again it is %s", got)
	}
}
