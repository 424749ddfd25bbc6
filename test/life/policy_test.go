// SPDX-License-Identifier: Apache-2.0

package life

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"holdfast/test/kit"
)

// restartable creates a container for each pair of these.
var (
	policies = []string{"no", "on-failure", "always", "unless-stopped"}
	ends     = []string{"created", "ended 0", "ended 3", "stopped", "running"}
)

// restartable creates a container for each policy and each way of ending it.
func (e engine) restartable(t *testing.T) {
	t.Helper()
	var wg sync.WaitGroup
	for _, end := range ends {
		wg.Go(func() {
			for _, p := range policies {
				name := strings.ReplaceAll(p+"."+end, " ", "-")
				how := []string{"--name", name, "--stop-timeout", "0", "--restart", p}
				code, ended := strings.CutPrefix(end, "ended ")
				switch {
				case ended:
					// The program must exit without being restarted, so the
					// policy is set afterwards.
					how = append(how, image, "sh", "-c", "[ -e /ran ] && exec sleep 1000; touch /ran; exit "+code)
					how[slices.Index(how, "--restart")+1] = "no"
				default:
					how = append(how, image, "sleep", "1000")
				}
				e.Docker(append([]string{"create"}, how...)...)
				if end == "created" {
					continue
				}
				e.Docker("start", name)
				switch {
				case ended:
					e.Docker("wait", name)
					e.Docker("update", "--restart", p, name)
				case end == "stopped":
					e.Docker("stop", name)
				}
			}
		})
	}
	wg.Wait()
}

// runningNames returns the sorted names of all running containers.
func (e engine) runningNames() []string {
	names := strings.Fields(e.Docker("ps", "--format", "{{.Names}}"))
	slices.Sort(names)
	return names
}

// runningBecomes polls until exactly these containers run. A daemon starts
// containers in the background, after it has reported that it is ready.
func (e engine) runningBecomes(t *testing.T, want []string) {
	t.Helper()
	eventually(t, func() (bool, string) {
		got := e.runningNames()
		return slices.Equal(got, want), fmt.Sprintf("running are\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	})
}

// after returns the containers that must run after the start of a daemon: for
// each policy, the ways of ending after which a container is started.
func after(t *testing.T, dockers bool) []string {
	t.Helper()
	runs := map[string][]string{
		"on-failure":     {"ended-3", "running"},
		"always":         {"ended-0", "ended-3", "stopped", "running"},
		"unless-stopped": {"ended-0", "ended-3", "running"},
	}
	if dockers {
		// dockerd regards a stop with an exit code other than 0 as a failure.
		// For Holdfast a container that the user stopped has not failed.
		runs["on-failure"] = append(runs["on-failure"], "stopped")
	}
	var names []string
	for p, ended := range runs {
		for _, e := range ended {
			names = append(names, p+"."+e)
		}
	}
	slices.Sort(names)
	return names
}

// The same table as in package container, checked with real daemons. Where a
// daemon is stopped and started, a dockerd is checked as well.
func TestRestartPoliciesAreDockersHoweverTheDaemonBegins(t *testing.T) {
	for _, how := range []struct {
		what string
		stop func(engine)
	}{
		{"start", func(e engine) { e.Term() }},
		{"crash", func(e engine) { e.Kill9() }},
		{"boot", func(e engine) { e.Kill9(); e.killContainers(t) }},
	} {
		var engines []engine
		if how.what == "start" {
			engines = both(t, false)
		} else {
			d := kit.Start(t, kit.Options{})
			d.Load(image, kit.Busybox(t, nil))
			engines = []engine{{d, "holdfast"}}
		}
		for _, e := range engines {
			t.Run(how.what+" "+e.what, func(t *testing.T) {
				e.restartable(t)
				how.stop(e)
				e.Start()
				e.runningBecomes(t, after(t, e.what == "dockerd"))
			})
		}
	}
}

// A manual takeover, an upgrade, and an upgrade that fails and is undone start
// and stop no container, whatever its policy and however it ended before.
func TestTakeoverChangesNoContainersState(t *testing.T) {
	for _, live := range []bool{true, false} {
		d := kit.Start(t, kit.Options{LiveRestore: live})
		d.Load(image, kit.Busybox(t, nil))
		e := engine{d, "holdfast"}
		e.restartable(t)
		const all = "{{.Name}} {{.State.Status}} {{.State.Pid}} {{.State.StartedAt}} {{.State.FinishedAt}} {{.State.ExitCode}} {{.RestartCount}}"
		states := func() string {
			ids := strings.Fields(e.Docker("ps", "-aq", "--no-trunc"))
			return e.Docker(append([]string{"inspect", "-f", all}, ids...)...)
		}
		before := states()
		for _, how := range []struct {
			what string
			take func()
		}{
			{"a takeover", func() { d.Takeover() }},
			{"an upgrade", func() {
				d.Holdfast("daemon", "upgrade")
				pid := 0
				fmt.Sscan(d.Holdfast("daemon", "status", "-f", "{{.Daemon.Pid}}"), &pid)
				d.Became(pid)
			}},
			{"a takeover that fails", func() {
				if err := d.TryTakeover("HOLDFAST_FAILPOINT=takeover.restored"); err == nil {
					t.Error("it went well")
				}
			}},
		} {
			how.take()
			// Containers would be started in the background. A container that
			// is started now runs after those, so once it has ended they would
			// be visible.
			e.Docker("run", "--rm", image, "true")
			if got := states(); got != before {
				t.Errorf("live restore %v, after %s:\n%s\nbefore:\n%s", live, how.what, got, before)
			}
		}
	}
}
