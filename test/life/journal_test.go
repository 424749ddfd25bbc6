// SPDX-License-Identifier: Apache-2.0

package life

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// A shim discards the journal entries that the daemon has recorded, so that its journal
// stays short and a new daemon reads little. What ends while no daemon runs, and under
// shims that are killed, is still reported, and each event once.
func TestJournalOfALongRunIsShortAndEachEventIsThereOnce(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	id := d.Holdfast("run", "-d", "--name", "web", "--restart", "always", image, "sleep", "1000")
	began := time.Now().Add(-time.Minute).Unix()

	var want []string
	execs := func(count int) {
		t.Helper()
		for range count {
			code := len(want) % 7
			exec := d.CreateExec("web", fmt.Sprintf(`{"Cmd": ["sh", "-c", "exit %d"]}`, code))
			want = append(want, fmt.Sprintf("exec_die %s %d", exec, code))
			resp, err := d.HTTP().Post("http://d/exec/"+exec+"/start", "application/json", strings.NewReader(`{"Detach": true}`))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
	}
	size := func() int64 {
		t.Helper()
		st, err := os.Stat(filepath.Join(d.ExecRoot, "shim", id, proto.JournalFile))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	idle := func() bool {
		for _, x := range d.ShimState(id).Execs {
			if x.Running {
				return false
			}
		}
		return true
	}

	execs(40)
	kit.Eventually(t, "the journal of 40 execs is short", func() bool { return idle() && size() < 8<<10 })
	execs(3)
	d.Kill9()
	kit.Eventually(t, "the execs end without a daemon", idle)
	first := d.ShimState(id).Pid
	kit.Kill(t, first)
	want = append(want, "die <no value> 137")
	kit.Eventually(t, "the shim restarts the container", func() bool {
		st := d.ShimState(id)
		return st.Status == proto.StatusRunning && st.Pid != first
	})
	d.Start()
	execs(20)
	kit.Eventually(t, "the execs end", idle)
	d.Kill9()
	kit.Kill(t, d.ShimState(id).ShimPid)
	d.Start()
	execs(20)
	kit.Eventually(t, "the journal is short again", func() bool { return idle() && size() < 8<<10 })
	d.Restart()

	got := map[string]int{}
	events := d.Holdfast("events", "--since", fmt.Sprint(began), "--until", fmt.Sprint(time.Now().Unix()+1),
		"--filter", "container=web", "--format", "{{.Action}} {{.Actor.Attributes.execID}} {{.Actor.Attributes.exitCode}}")
	for line := range strings.Lines(events) {
		got[strings.TrimSpace(line)]++
	}
	for _, w := range want {
		if got[w] != 1 {
			t.Errorf("%q was reported %d times, want once", w, got[w])
		}
	}
}
