// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"holdfast/test/kit"
)

// both are the points at which the old daemon dies, with those at which the new
// one dies that could have gone on without it, or from which the old one takes
// everything back.
var both = map[string][]string{
	"handover.welcomed": {"takeover.taken", "takeover.serving"},
	"handover.asked":    {"takeover.composed", "takeover.serving"},
	"handover.paused":   {"takeover.restored", "takeover.serving"},
	"handover.retired":  {"takeover.taken", "takeover.serving"},
	"handover.given":    {"takeover.restored", "takeover.serving"},
	"handover.ready":    {"takeover.go", "takeover.serving"},
	// It has heard that the new one serves, which is killed then.
	"handover.serving": {""},
	// It dies while it takes everything back, as the new one has died.
	"handover.fenced": {"takeover.taken", "takeover.composed", "takeover.restored", "takeover.go", "takeover.serving"},
}

// Wherever a handover is when both daemons die, the containers run on, and the
// next daemon restores everything and can hand over.
func TestNextDaemonRestoresWhereverBothDie(t *testing.T) {
	t.Parallel()
	turn := make(chan struct{}, 3) // so many at a time
	for old, points := range both {
		for _, point := range points {
			t.Run(old+" "+point, func(t *testing.T) {
				t.Parallel()
				turn <- struct{}{}
				defer func() { <-turn }()
				d := start(t, kit.Options{LiveRestore: true, Env: []string{"HOLDFAST_FAILPOINT=" + old}})
				d.SetEnv()
				if point != "" {
					if err := d.TryTakeover("HOLDFAST_FAILPOINT=" + point); err == nil {
						t.Fatal("the takeover went well")
					}
					select {
					case <-d.Exited():
					case <-time.After(patience):
						t.Fatalf("the old daemon lives:\n%s", d.Log())
					}
					if code := d.WaitExit(); code != -1 {
						t.Errorf("the old daemon was not killed but ended with %d", code)
					}
				} else {
					d.Takeover()
					<-d.Predecessors()[0].Exited
					d.Kill9()
				}
				d.Start()
				d.unchanged()
				if got := pidfile(t, d.Daemon); got != d.Pid() {
					t.Errorf("the pid file says %d, the daemon is %d", got, d.Pid())
				}
				d.Takeover()
				d.unchanged()
				d.end()
			})
		}
	}
}

// Each point of the two sides is one at which a test lets its side die.
func TestEveryPointOfAHandoverIsTested(t *testing.T) {
	t.Parallel()
	tested := map[string]bool{}
	for old, points := range both {
		tested[old] = true
		for _, p := range points {
			tested[p] = true
		}
	}
	tested["takeover.welcomed"] = true // TestOldDaemonServesOnWhereverTheNewOneDies
	here := regexp.MustCompile(`failpoint\.Here\("([^"]+)"\)`)
	files, err := filepath.Glob("../../cmd/holdfastd/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var missing []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range here.FindAllStringSubmatch(string(text), -1) {
			if !tested[m[1]] {
				missing = append(missing, m[1])
			}
		}
	}
	slices.Sort(missing)
	if len(missing) > 0 {
		t.Errorf("no test has the points %v", missing)
	}
}
