// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// Without live restore, SIGTERM to the daemon stops every container with its
// own stop signal and timeout, and then with SIGKILL.
func TestWithoutLiveRestoreTermStopsAllByTheirOwnRules(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const obeys = "trap 'exit 3' TERM USR1; echo trapped; while :; do sleep 0.02; done"
	trapped := func(names ...string) {
		for _, name := range names {
			kit.Eventually(t, name+" waits for signals", func() bool { return d.Holdfast("logs", name) == "trapped" })
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
	pid := d.Inspect("deaf").State.Pid

	from := time.Now()
	d.Term()
	if took := time.Since(from); took < time.Second || took > 5*time.Second {
		t.Errorf("the daemon took %s to exit, although no container needs more than 1 s", took)
	}
	if kit.Alive(pid) {
		t.Error("a container still runs")
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
		kit.Eventually(t, name+" is started again", func() bool { return status(d, name) == "running" })
	}
	kit.Eventually(t, "the container with --rm is removed", func() bool { return status(d, "brief") == "gone" })
	if got := d.Holdfast("volume", "ls", "-q"); got != "" {
		t.Errorf("volumes are left: %s", got)
	}
}

// shutdown-timeout limits the whole shutdown, for containers without a stop
// timeout of their own.
func TestShutdownIsBoundedByItsTimeout(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{Config: map[string]any{"shutdown-timeout": 1}})
	d.Holdfast("run", "-d", "--name", "deaf", image, "sh", "-c", "trap '' TERM; while :; do sleep 0.02; done")
	pid := d.Inspect("deaf").State.Pid
	from := time.Now()
	d.Term()
	if took := time.Since(from); took < 900*time.Millisecond || took > 4*time.Second {
		t.Errorf("it took %s", took)
	}
	if kit.Alive(pid) {
		t.Error("without live restore the container outlives the daemon")
	}
}

// After a crash without live restore, the next daemon stops the containers that
// still run and then applies the restart policies.
func TestWithoutLiveRestoreTheNextStartStopsWhatACrashLeft(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const obeys = "trap 'exit 3' TERM; while :; do sleep 0.02; done"
	pids := map[string]int{}
	for name, args := range map[string][]string{"plain": nil, "brief": {"--rm"}, "always": {"--restart", "always"}, "failure": {"--restart", "on-failure"}} {
		d.Holdfast(append(append([]string{"run", "-d", "--name", name}, args...), image, "sh", "-c", obeys)...)
		pids[name] = d.Inspect(name).State.Pid
	}
	d.Kill9()
	for name, pid := range pids {
		if !kit.Alive(pid) {
			t.Errorf("%s died with the daemon", name)
		}
	}
	d.Start()
	for name, pid := range pids {
		if kit.Alive(pid) {
			t.Errorf("%s is left running", name)
		}
	}
	if got := d.Holdfast("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "plain"); got != "exited 3" {
		t.Errorf("plain is %s", got)
	}
	kit.Eventually(t, "the container with --rm is removed", func() bool { return status(d, "brief") == "gone" })
	for _, name := range []string{"always", "failure"} {
		kit.Eventually(t, name+" is started again", func() bool {
			c := d.Inspect(name)
			return c.State.Status == "running" && c.State.Pid != pids[name]
		})
		oneOrNone(t, d, name)
	}
}

// SIGHUP alone enables live restore: a daemon that is killed right after it
// leaves the containers running.
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
	// And live restore can be disabled again.
	d.WriteConfig(nil)
	d.Hup()
	noFailure(t, p)
	d.Term()
	d.Start()
	if got := status(d, "web"); got != "exited" {
		t.Errorf("with live restore disabled again the container is %s", got)
	}
}
