// SPDX-License-Identifier: Apache-2.0

package task

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/swarmserver/local"
)

// swarmkit forgets the tasks of a node that is stopped for another run in the same
// process, and gets them again later.
func TestNoContainerIsAnOrphanBeforeTheManagerHasSentAllTasks(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "containers", "c1")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "spec.json"), []byte(`{"schema":1,"id":"c1","task":"t1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	x := NewExecutor(nil, local.Host{DataRoot: root}, nil, "")
	want := func(when string, n int) {
		t.Helper()
		if got := x.orphans(); len(got) != n {
			t.Errorf("%s: %d orphans, want %d", when, len(got), n)
		}
	}
	want("at the start", 0)
	x.assigned()
	want("after all tasks have come", 1)
	x.Keep(true)
	want("while the node stops", 0)
	x.Keep(false)
	want("before all tasks have come again", 0)
	x.assigned()
	want("after all tasks have come again", 1)
}
