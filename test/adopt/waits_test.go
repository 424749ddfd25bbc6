// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// TestRestartThatWaitsIsNotLostWhileNoShimCanBeStarted: during the backoff
// there is no process whose end could be observed. The next shim must continue
// the restart, and a stop must end it at once.
func TestRestartThatWaitsIsNotLostWhileNoShimCanBeStarted(t *testing.T) {
	t.Parallel()
	shim := filepath.Join(t.TempDir(), "holdfast-shim")
	b, err := os.ReadFile(kit.Binary(t, "holdfast-shim"))
	if err == nil {
		err = os.WriteFile(shim, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := kit.Start(t, kit.Options{LiveRestore: true, Shim: shim})
	d.Load(image, kit.Busybox(t, nil))
	waits := func(name string) (id string) {
		t.Helper()
		id = d.Holdfast("run", "-d", "--name", name, "--restart", "always", image, "false")
		kit.Eventually(t, "the backoff is long", func() bool {
			st := d.ShimState(id)
			return st.Status == proto.StatusRestarting && st.RestartCount >= 5
		})
		return id
	}
	first, second := waits("first"), waits("second")
	if err := os.Rename(shim, shim+".away"); err != nil {
		t.Fatal(err)
	}
	killShim(t, d, first)
	killShim(t, d, second)
	kit.Eventually(t, "the daemon reports that it can start no shim", func() bool {
		return strings.Count(d.Log(), "runs on without a shim") == 2
	})
	for _, name := range []string{"first", "second"} {
		if s := d.Inspect(name).State; s.Status != "restarting" || s.ExitCode != 1 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	d.Holdfast("stop", "second")
	if s := d.Inspect("second").State; s.Status != "exited" {
		t.Errorf("stopped: %+v", s)
	}
	if err := os.Rename(shim+".away", shim); err != nil {
		t.Fatal(err)
	}
	n := d.Inspect("first").RestartCount
	kit.Eventually(t, "the container is started again", func() bool { return d.Inspect("first").RestartCount > n })
	d.Holdfast("rm", "-f", "first", "second")
}
