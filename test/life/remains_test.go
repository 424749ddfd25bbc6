// SPDX-License-Identifier: Apache-2.0

package life

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// killedRuns is a runtime that is killed while it starts a container: the cgroups
// exist, with a process in them, and nothing is recorded yet. Where freezers are
// of cgroup v1 the process is frozen.
const killedRuns = `#!/bin/sh
case " $* " in *" run "*)
	for id; do :; done
	sleep 1000 </dev/null >/dev/null 2>&1 &
	for base in /sys/fs/cgroup /sys/fs/cgroup/*; do
		[ -f "$base/cgroup.procs" ] && mkdir -p "${base}PARENT/$id" || continue
		# A new cpuset has neither processors nor memory.
		for f in cpuset.cpus cpuset.mems; do
			[ -f "$base/$f" ] && cat "$base/$f" >"${base}PARENT/$f" && cat "$base/$f" >"${base}PARENT/$id/$f"
		done
		echo $! >"${base}PARENT/$id/cgroup.procs"
		[ -f "${base}PARENT/$id/freezer.state" ] && echo FROZEN >"${base}PARENT/$id/freezer.state"
	done
	kill -9 $$
esac
exec runc "$@"
`

func TestStartWhoseRuntimeIsKilledLeavesNoCgroup(t *testing.T) {
	rt := filepath.Join(t.TempDir(), "runtime")
	d := kit.New(t, kit.Options{LiveRestore: true, Config: map[string]any{
		"runtimes": map[string]any{"killed": map[string]any{"path": rt}},
	}})
	write(t, rt, strings.ReplaceAll(killedRuns, "PARENT", d.Cgroup))
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	r := d.TryHoldfast("run", "-d", "--name", "web", "--runtime", "killed", image, "sleep", "1000")
	if r.Code == 0 || !strings.Contains(r.Stderr, "exit code 137") {
		t.Errorf("the start: %+v", r)
	}
	if left := d.Leaks(); strings.Contains(strings.Join(left, "\n"), "cgroup") {
		t.Errorf("after the failed start there are %v", left)
	}
	d.Holdfast("rm", "web")
}

// interruptedDeletes is a runtime whose first deletion does not come to an end: it ends
// after a while without having done anything.
const interruptedDeletes = `#!/bin/sh
case " $* " in *" delete "*)
	if mkdir DIR/deleting 2>/dev/null; then
		while [ ! -e DIR/over ]; do sleep 0.05; done
		exit 1
	fi
esac
exec runc "$@"
`

// A shim records the end of its container while the runtime deletes the container. If
// the shim is killed then, the daemon deletes the container in the runtime; if the
// daemon is killed as well, the next daemon does.
func TestShimThatIsKilledWhileItDeletesLeavesNothingInTheRuntime(t *testing.T) {
	for _, next := range []bool{false, true} {
		name := map[bool]string{false: "daemon", true: "next daemon"}[next]
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			rt := filepath.Join(dir, "runtime")
			d := kit.New(t, kit.Options{LiveRestore: true, Config: map[string]any{
				"runtimes": map[string]any{"interrupted": map[string]any{"path": rt}},
			}})
			write(t, rt, strings.ReplaceAll(interruptedDeletes, "DIR", dir))
			d.Start()
			d.Load(image, kit.Busybox(t, nil))
			id := d.Holdfast("run", "-d", "--name", "web", "--runtime", "interrupted", image, "sh", "-c", "sleep 1; exit 5")
			kit.Eventually(t, "the shim has recorded the end and deletes the container", func() bool {
				_, err := os.Stat(filepath.Join(dir, "deleting"))
				return err == nil && d.ShimState(id).Status == "exited"
			})
			shim := d.ShimState(id).ShimPid
			if next {
				d.Kill9()
			}
			kit.Kill(t, shim)
			write(t, filepath.Join(dir, "over"), "")
			if next {
				d.Start()
			}
			kit.Eventually(t, "the runtime has no container left", func() bool {
				_, err := os.Stat(filepath.Join(d.ExecRoot, "runtime", "interrupted", id))
				return errors.Is(err, os.ErrNotExist)
			})
			if s := d.Inspect("web").State; s.Status != "exited" || s.ExitCode != 5 {
				t.Errorf("%+v", s)
			}
			d.Holdfast("rm", "web")
		})
	}
}
