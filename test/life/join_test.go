// SPDX-License-Identifier: Apache-2.0

package life

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// namespaces returns the namespaces of a container as its processes see them.
func (e engine) namespaces(c string, kinds ...string) string {
	args := []string{"exec", c, "readlink"}
	var out []string
	for _, k := range kinds {
		out = append(out, e.Docker(append(args, "/proc/self/ns/"+k)...))
	}
	return strings.Join(out, " ")
}

// Container a joins b, and b joins t. All properties of the shared namespaces
// come from t.
func TestChainOfJoinedNamespaces(t *testing.T) {
	const seen = `hostname; cat /etc/hostname; grep -v '^#' /etc/resolv.conf | sort; grep 192.0.2.1 /etc/hosts; cat /dev/shm/there; ls -d /proc/1`
	for _, e := range both(t, true) {
		t.Run(e.what, func(t *testing.T) {
			e.Docker("network", "create", "--internal", "own")
			target := e.Docker("run", "-d", "--name", "tt", "--network", "own", "--hostname", "tee", "--add-host", "there:192.0.2.1", "--ipc", "shareable", image, "sleep", "1000")
			e.Docker("exec", "tt", "sh", "-c", "echo shared > /dev/shm/there")
			e.Docker("run", "-d", "--name", "bb", "--network", "container:tt", "--ipc", "container:tt", "--pid", "container:tt", image, "sleep", "1000")
			e.Docker("run", "-d", "--name", "aa", "--network", "container:bb", "--ipc", "container:bb", "--pid", "container:bb", image, "sleep", "1000")
			want, inside := e.namespaces("tt", "net", "ipc", "pid"), e.Docker("exec", "tt", "sh", "-c", seen)
			for _, c := range []string{"bb", "aa"} {
				if got := e.namespaces(c, "net", "ipc", "pid"); got != want {
					t.Errorf("%s is in %s, want %s", c, got, want)
				}
				if got := e.Docker("exec", c, "sh", "-c", seen); got != inside {
					t.Errorf("%s has\n%s\nwant\n%s", c, got, inside)
				}
				paths := e.Docker("inspect", "-f", "{{.ResolvConfPath}} {{.HostnamePath}} {{.HostsPath}} {{.Config.Hostname}}", c)
				if strings.Count(paths, target) != 3 || !strings.HasSuffix(paths, " tee") {
					t.Errorf("%s: %s", c, paths)
				}
			}
			// The modes contain the container's ID, so a rename does not affect
			// them.
			e.Docker("rename", "tt", "tt2")
			for _, c := range []string{"bb", "aa"} {
				e.Docker("restart", "-t", "0", c)
				if got := e.namespaces(c, "net", "ipc", "pid"); got != e.namespaces("tt2", "net", "ipc", "pid") {
					t.Errorf("after a restart %s is in the namespaces %s", c, got)
				}
			}
			if got := e.Docker("inspect", "-f", "{{.HostConfig.NetworkMode}} {{.HostConfig.IpcMode}} {{.HostConfig.PidMode}}", "bb"); got != strings.TrimSpace(strings.Repeat("container:"+target+" ", 3)) {
				t.Errorf("the modes are %s", got)
			}
			// Containers can be removed in the order of dependence.
			e.Docker("rm", "-f", "bb", "aa")
			e.Docker("create", "--name", "bb", "--network", "container:tt2", image, "sleep", "1000")
			e.Docker("create", "--name", "aa", "--network", "container:bb", image, "sleep", "1000")
			e.Docker("stop", "-t", "0", "tt2")
			for _, c := range []string{"aa", "bb"} {
				if r := e.TryDocker("start", c); r.Code == 0 || !strings.Contains(r.Stderr, "of a non running container") {
					t.Errorf("start %s: %+v", c, r)
				}
			}
			e.Docker("start", "tt2")
			e.Docker("start", "bb")
			e.Docker("start", "aa")
			if got := e.namespaces("aa", "net"); got != e.namespaces("tt2", "net") {
				t.Errorf("aa is in %s", got)
			}
		})
	}
}

// A new daemon starts containers that join others after those others, whatever
// the order of their IDs.
func TestContainersThatJoinOthersStartInOrder(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	d.Load(image, kit.Busybox(t, nil))
	e := engine{d, "holdfast"}
	target := []string{"run", "-d", "--restart", "always", "--stop-timeout", "0", "--ipc", "shareable"}
	var want []string
	for i := range 4 {
		last := fmt.Sprintf("t%d", i)
		e.Docker(append(slices.Clone(target), "--name", last, image, "sleep", "1000")...)
		want = append(want, last)
		for _, prefix := range []string{"s", "r", "q"} {
			name := fmt.Sprintf("%s%d", prefix, i)
			e.Docker("run", "-d", "--restart", "always", "--stop-timeout", "0", "--name", name,
				"--network", "container:"+last, "--ipc", "container:"+last, "--pid", "container:"+last, image, "sleep", "1000")
			want, last = append(want, name), name
		}
	}
	slices.Sort(want)
	for _, how := range []struct {
		what string
		stop func()
	}{
		{"the service is restarted", e.Term},
		{"the daemon dies", e.Kill9},
		{"the machine is started", func() { e.Kill9(); e.killContainers(t) }},
	} {
		how.stop()
		e.Start()
		e.runningBecomes(t, want)
		for i := range 4 {
			net := e.namespaces(fmt.Sprintf("t%d", i), "net", "ipc", "pid")
			for _, prefix := range []string{"s", "r", "q"} {
				if got := e.namespaces(fmt.Sprintf("%s%d", prefix, i), "net", "ipc", "pid"); got != net {
					t.Errorf("%s: %s%d is in %s, want %s", how.what, prefix, i, got, net)
				}
			}
		}
		if t.Failed() {
			return
		}
	}
}

// A container that joins another finds it by its current process, and not by a
// pid that another process may have by now. The shim restarts the dependent
// container after the other runs in a new process, and while the other does not
// run.
func TestRestartedDependentJoinsTheProcessOfNow(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	e := engine{d, "holdfast"}
	e.Docker("run", "-d", "--name", "tt", "--ipc", "shareable", image, "sleep", "1000")
	e.Docker("run", "-d", "--name", "dep", "--restart", "always", "--network", "container:tt", "--ipc", "container:tt", image, "sleep", "1000")
	restarted := func() {
		t.Helper()
		pid := e.Docker("inspect", "-f", "{{.State.Pid}}", "dep")
		n := 0
		fmt.Sscan(pid, &n)
		kill(t, n)
	}
	for _, daemon := range []bool{true, false} {
		e.Docker("restart", "-t", "0", "tt")
		if !daemon {
			pid := 0
			fmt.Sscan(e.Docker("inspect", "-f", "{{.State.Pid}}", "dep"), &pid)
			e.Kill9()
			kill(t, pid)
			e.runsAnew(t, "dep", pid)
			e.Start()
		} else {
			restarted()
		}
		e.is(t, "dep", "{{.State.Status}}", "running")
		eventually(t, func() (bool, string) {
			r := e.TryDocker("exec", "dep", "readlink", "/proc/self/ns/net")
			want := e.namespaces("tt", "net")
			return strings.TrimSpace(r.Stdout) == want, fmt.Sprintf("it is in %+v, want %s", r, want)
		})
	}
	// While the other container does not run, the start fails with a reason and
	// is tried again.
	e.Docker("stop", "-t", "0", "tt")
	restarted()
	eventually(t, func() (bool, string) {
		got := e.Docker("inspect", "-f", "{{.State.Status}} {{.State.Error}}", "dep")
		return strings.HasPrefix(got, "restarting") && strings.Contains(got, "cannot join network of a non running container: tt"), got
	})
	e.Docker("start", "tt")
	e.is(t, "dep", "{{.State.Status}}", "running")
	eventually(t, func() (bool, string) {
		r := e.TryDocker("exec", "dep", "readlink", "/proc/self/ns/net")
		want := e.namespaces("tt", "net")
		return strings.TrimSpace(r.Stdout) == want, fmt.Sprintf("it is in %+v, want %s", r, want)
	})
}

// The first process of a PID namespace ends only when all others in it have. A container that
// has joined it and is paused must not keep it from being stopped, killed or removed.
func TestPausedContainerKeepsNoOtherFromEnding(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	for _, tt := range []struct {
		name   string
		do     []string
		before func()
	}{
		{name: "stop", do: []string{"stop", "-t", "1", "tt"}},
		{name: "kill", do: []string{"kill", "tt"}},
		{name: "removal", do: []string{"rm", "-f", "tt"}},
		{name: "stop without a daemon", do: []string{"stop", "-t", "1", "tt"}, before: d.Kill9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d.Docker("run", "-d", "--name", "tt", image, "sleep", "1000")
			d.Docker("run", "-d", "--name", "bb", "--pid", "container:tt", image, "sleep", "1000")
			d.Docker("pause", "bb")
			if tt.before != nil {
				tt.before()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if out, err := d.HoldfastCommand(ctx, tt.do...).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			if !d.Running() {
				d.Start()
			}
			kit.Eventually(t, "the paused container has ended", func() bool { return d.Inspect("bb").State.Status == "exited" })
			if code := d.Inspect("bb").State.ExitCode; code != 137 {
				t.Errorf("it has ended with %d", code)
			}
			d.Docker("rm", "-f", "tt", "bb")
		})
	}
}
