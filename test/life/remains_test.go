// SPDX-License-Identifier: Apache-2.0

package life

import (
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
