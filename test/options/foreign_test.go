// SPDX-License-Identifier: Apache-2.0

package options

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// A user who comes from Docker may keep its daemon.json, and with it Docker's
// data root.
func TestDataRootOfDockersIsRefusedAndLeftAlone(t *testing.T) {
	t.Parallel()
	p := kit.StartPeer(t, kit.PeerOptions{})
	p.Load("busybox:test", kit.Busybox(t, nil))
	p.Docker("create", "--name", "ada", "busybox:test", "true")
	p.Term()
	d := kit.New(t, kit.Options{Config: map[string]any{"data-root": p.DataRoot}})
	before := names(t, p.DataRoot)
	err := d.TryStart()
	if err == nil {
		t.Fatal("the daemon started with Docker's data root")
	}
	for _, w := range []string{p.DataRoot, "Docker's", `"data-root"`} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not contain %q: %v", w, err)
		}
	}
	if after := names(t, p.DataRoot); after != before {
		t.Errorf("Docker's data root was changed: before:\n%s\nafter:\n%s", before, after)
	}
	// Docker can still use its data root.
	p.Start()
	if got := p.Docker("ps", "-aq", "--filter", "name=ada"); got == "" {
		t.Error("Docker's container is missing")
	}
}

func names(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	if err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err == nil {
			b.WriteString(path + " " + e.Type().String() + "\n")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
