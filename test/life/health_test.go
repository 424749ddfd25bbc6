// SPDX-License-Identifier: Apache-2.0

package life

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// health is the format of inspect for the health status, and whether results
// are kept.
const health = `{{if .State.Health}}{{.State.Health.Status}} {{if .State.Health.Log}}checked{{else}}unchecked{{end}}{{else}}none{{end}}`

// is waits until inspect prints a text.
func (e engine) is(t *testing.T, container, format, want string) {
	t.Helper()
	eventually(t, func() (bool, string) {
		got := e.Docker("inspect", "-f", format, container)
		return got == want, fmt.Sprintf("%s is %q, want %q", container, got, want)
	})
}

// Each step is also run on a dockerd.
func TestHealthIsWhatDockerReports(t *testing.T) {
	for _, e := range both(t, true) {
		t.Run(e.what, func(t *testing.T) {
			now := func(what, container, want string) {
				t.Helper()
				if got := e.Docker("inspect", "-f", health, container); got != want {
					t.Errorf("%s: %q, want %q", what, got, want)
				}
				// ps shows and filters by the same status.
				status, _, _ := strings.Cut(want, " ")
				if got := e.Docker("ps", "-aq", "--no-trunc", "--filter", "id="+container, "--filter", "health="+status); got != container {
					t.Errorf("%s: the filter health=%s finds %q", what, status, got)
				}
			}
			create := func(interval string, args ...string) string {
				return e.Docker(append([]string{"create", "--health-cmd", "test -e /tmp/well", "--health-interval", interval, "--health-retries", "1"}, args...)...)
			}
			const often, seldom = "100ms", "1h"

			id := create(often, image, "sleep", "1000")
			now("never started", id, "none")
			e.Docker("start", id)
			e.is(t, id, health, "unhealthy checked")
			e.Docker("exec", id, "touch", "/tmp/well")
			e.is(t, id, health, "healthy checked")
			e.Docker("pause", id)
			now("paused", id, "unhealthy checked")
			e.Docker("unpause", id)
			e.is(t, id, health, "healthy checked")
			e.Docker("kill", id)
			e.Docker("wait", id)
			now("ended", id, "unhealthy checked")

			id = create(seldom, image, "sleep", "1000")
			e.Docker("start", id)
			now("starting", id, "starting unchecked")
			e.Docker("pause", id)
			now("paused while it starts", id, "unhealthy unchecked")
			e.Docker("unpause", id)
			now("unpaused, before the next check", id, "unhealthy unchecked")
			e.Docker("kill", id)
			e.Docker("wait", id)
			now("ended before its first check", id, "unhealthy unchecked")
			e.Docker("start", id)
			now("started again", id, "starting unchecked")

			failed := create(often, image, "/no/such/program")
			if r := e.TryDocker("start", failed); r.Code == 0 {
				t.Error("it starts")
			}
			now("its start has failed", failed, "none")

			// The results of the last run's checks are kept for the next run.
			again := create(often, image, "sh", "-c", "touch /tmp/well; sleep 1000")
			e.Docker("start", again)
			e.is(t, again, health, "healthy checked")
			e.Docker("kill", again)
			e.Docker("wait", again)
			logged := `{{range .State.Health.Log}}{{.Start}} {{end}}`
			before := e.Docker("inspect", "-f", logged, again)
			e.Docker("start", again)
			if after := e.Docker("inspect", "-f", logged, again); !strings.Contains(after, strings.Fields(before)[len(strings.Fields(before))-4]) {
				t.Errorf("the results of the earlier run are missing:\n%s\n%s", before, after)
			}

			// A container between two runs.
			loops := create(seldom, "--restart", "always", image, "sh", "-c", "exit 3")
			e.Docker("start", loops)
			e.is(t, loops, "{{.State.Status}} "+health, "restarting unhealthy unchecked")
			e.Docker("rm", "-f", loops)

			off := e.Docker("run", "-d", "--no-healthcheck", image, "sleep", "1000")
			now("switched off", off, "none")
		})
	}
}

// When dockerd starts, it resets the health of running containers. With
// Holdfast the end of a daemon changes nothing of a container, including its
// health.
func TestHealthStaysOverDaemons(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	e := engine{d, "holdfast"}
	id := e.Docker("run", "-d", "--health-cmd", "true", "--health-interval", "100ms", image, "sleep", "1000")
	e.is(t, id, health, "healthy checked")
	paused := e.Docker("run", "-d", "--health-cmd", "true", "--health-interval", "1h", image, "sleep", "1000")
	e.Docker("pause", paused)
	for _, how := range []func(){e.Kill9, e.Term, nil} {
		if how == nil {
			e.Takeover()
		} else {
			how()
			e.Start()
		}
		for c, want := range map[string]string{id: "healthy checked", paused: "unhealthy unchecked"} {
			if got := e.Docker("inspect", "-f", health, c); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
	}
	// Containers that ended while no daemon lived.
	e.Kill9()
	pid := 0
	fmt.Sscan(containerPid(t, e, id), &pid)
	kill(t, pid)
	e.Start()
	e.is(t, id, "{{.State.Status}} "+health, "exited unhealthy checked")
}

// A running container keeps the time at which it ended last.
func TestFinishedAtIsThatOfTheLastRun(t *testing.T) {
	const times = "{{.State.StartedAt}} {{.State.FinishedAt}}"
	for _, e := range both(t, true) {
		t.Run(e.what, func(t *testing.T) {
			finished := func(id string) string {
				t.Helper()
				return e.Docker("inspect", "-f", "{{.State.FinishedAt}}", id)
			}
			const never = "0001-01-01T00:00:00Z"
			id := e.Docker("run", "-d", image, "sleep", "1000")
			if got := finished(id); got != never {
				t.Errorf("FinishedAt in the first run: %s", got)
			}
			e.Docker("kill", id)
			e.Docker("wait", id)
			first := finished(id)
			e.Docker("start", id)
			if got := finished(id); first == never || got != first {
				t.Errorf("FinishedAt in the second run: %s; the first run ended at %s", got, first)
			}
			e.Docker("restart", "-t", "0", id)
			second := finished(id)
			if second <= first {
				t.Errorf("after a restart: %s, before %s", second, first)
			}
			e.Kill9()
			e.Start()
			if got := finished(id); got != second {
				t.Errorf("FinishedAt after the daemon's end: %s, before it: %s", got, second)
			}
			// A failed start is not a run.
			dir := t.TempDir()
			bad := e.Docker("create", "-v", dir+":/d", "--entrypoint", "/d/run", image)
			write(t, dir+"/run", "#!/bin/sh\nexit 3\n")
			e.Docker("start", bad)
			e.Docker("wait", bad)
			before := e.Docker("inspect", "-f", times, bad)
			write(t, dir+"/run", "")
			remove(t, dir+"/run")
			if r := e.TryDocker("start", bad); r.Code == 0 {
				t.Error("it starts")
			}
			if after := e.Docker("inspect", "-f", times, bad); after != before {
				t.Errorf("FinishedAt after a failed start: %s, before it: %s", after, before)
			}
		})
	}
}
