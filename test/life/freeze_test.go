// SPDX-License-Identifier: Apache-2.0

package life

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// flaky is a runtime that fails to freeze or thaw a container as many times as
// a file says. runc does that under load.
const flaky = `#!/bin/sh
log= prev=
for a; do [ "$prev" = --log ] && log=$a; prev=$a; done
case " $* " in *" VERB "*)
	n=$(cat DIR/calls)
	echo $((n+1)) > DIR/calls
	if [ $n -lt $(cat DIR/fails) ]; then
		echo '{"level":"error","msg":"unable to freeze"}' >> "$log"
		exit 1
	fi
esac
exec runc "$@"
`

func TestFreezingIsTriedAgainAndNeverLeftHalfDone(t *testing.T) {
	for _, verb := range []string{"pause", "resume"} {
		t.Run(verb, func(t *testing.T) {
			dir := t.TempDir()
			rt := filepath.Join(dir, "runtime")
			write(t, rt, strings.NewReplacer("VERB", verb, "DIR", dir).Replace(flaky))
			fails := func(n int) {
				write(t, dir+"/calls", "0\n")
				write(t, dir+"/fails", fmt.Sprintln(n))
			}
			fails(0)
			d := kit.Start(t, kit.Options{LiveRestore: true, Config: map[string]any{
				"runtimes": map[string]any{"flaky": map[string]any{"path": rt}},
			}})
			d.Load(image, kit.Busybox(t, nil))
			e := engine{d, "holdfast"}
			id := e.Docker("run", "-d", "--runtime", "flaky", image, "sleep", "1000")
			runs := func(after string) {
				t.Helper()
				if got := e.Docker("inspect", "-f", "{{.State.Status}} {{.State.Paused}}", id); got != "running false" {
					t.Errorf("after %s the container is %s", after, got)
				}
				if out := e.Docker("exec", id, "echo", "hi"); out != "hi" {
					t.Errorf("after %s exec gives %q", after, out)
				}
			}
			for _, n := range []int{0, 3} {
				fails(n)
				e.Docker("commit", id, fmt.Sprintf("made:%d", n))
				runs(fmt.Sprintf("a commit with %d failures", n))
				fails(n)
				e.Docker("pause", id)
				e.Docker("unpause", id)
				runs(fmt.Sprintf("a pause with %d failures", n))
			}
			// Now the runtime fails every time.
			fails(1 << 20)
			if verb == "pause" {
				for _, args := range [][]string{{"commit", id}, {"pause", id}} {
					r := e.TryDocker(args...)
					if r.Code == 0 || !strings.Contains(r.Stderr, "unable to freeze") {
						t.Errorf("%v: %+v", args, r)
					}
					runs(args[0] + " that failed")
				}
			} else {
				// A commit thaws the container as soon as the runtime succeeds
				// again.
				made := e.ask("commit", id)
				eventually(t, func() (bool, string) {
					return strings.Contains(e.Log(), "not thawed after a commit"), "no log message says that the container is not thawed"
				})
				fails(0)
				if r := made.answer(t); r.Code != 0 {
					t.Errorf("commit: %+v", r)
				}
				runs("a commit that could not thaw it")
			}
			fails(0)
			e.Docker("rm", "-f", id)
		})
	}
}
