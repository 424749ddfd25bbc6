// SPDX-License-Identifier: Apache-2.0

package life

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"holdfast/test/kit"
)

// killedExecs is a runtime whose exec calls are killed, each a little later
// than the one before. The processes that they have started in the container
// become children of the shim.
const killedExecs = `#!/bin/sh
case " $* " in *" exec "*)
	n=$(cat DIR/execs)
	echo $((n+1)) > DIR/execs
	exec timeout -s KILL 0.0$((n % 9 + 1)) runc "$@"
esac
exec runc "$@"
`

// zombies counts the children of a shim that have exited and are not reaped.
func zombies(shim int) (n int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", shim))
	for _, task := range tasks {
		children, _ := os.ReadFile(task)
		for _, pid := range strings.Fields(string(children)) {
			if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && strings.Contains(string(stat), ") Z ") {
				n++
			}
		}
	}
	return n
}

// Calls of the runtime fail and processes start in the container at any moment.
// The container ends when it should, its shim leaves no zombies, and another
// daemon can take over.
func TestContainerEndsWhileExecsAndChecksStart(t *testing.T) {
	dir := t.TempDir()
	rt := filepath.Join(dir, "runtime")
	write(t, rt, strings.ReplaceAll(killedExecs, "DIR", dir))
	write(t, dir+"/execs", "0\n")
	d := kit.Start(t, kit.Options{LiveRestore: true, Config: map[string]any{
		"runtimes": map[string]any{"killed": map[string]any{"path": rt}},
	}})
	d.Load(image, kit.Busybox(t, nil))
	e := engine{d, "holdfast"}
	for _, runtime := range []string{"runc", "killed"} {
		for round, how := range [][]string{{"kill"}, {"stop", "-t", "0"}, {"rm", "-f"}, {"stop", "-t", "1"}} {
			id := e.Docker("run", "-d", "--runtime", runtime, "--health-cmd", "true", "--health-interval", "1s", image, "sleep", "1000")
			shim := e.seen(t, id).ShimPid
			if runtime == "killed" {
				for range 9 {
					e.TryDocker("exec", id, "true")
				}
				eventually(t, func() (bool, string) {
					n := zombies(shim)
					return n == 0, fmt.Sprintf("the shim has %d zombies", n)
				})
			}
			var execs sync.WaitGroup
			for range 4 {
				execs.Go(func() { e.TryDocker("exec", id, "sleep", "1000") })
			}
			if round%2 == 1 { // vary whether the end comes before or after the first check
				e.event(t, id, "exec_start", 1)
			}
			if r := e.ask(append(how, id)...).answer(t); r.Code != 0 {
				t.Errorf("%s, %v: %+v", runtime, how, r)
			}
			execs.Wait()
			d.Takeover()
			if how[0] != "rm" {
				if got := e.Docker("inspect", "-f", "{{.State.Status}}", id); got != "exited" {
					t.Errorf("%s, %v: after a takeover the container is %s", runtime, how, got)
				}
				e.Docker("rm", id)
			}
		}
	}
}
