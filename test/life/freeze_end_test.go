// SPDX-License-Identifier: Apache-2.0

package life

import (
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// late is a runtime that kills the container before it carries out pause or
// update, so that the call meets a container that has just ended.
const late = `#!/bin/sh
log= root= prev= id=
for a; do
	case "$prev" in --log) log=$a;; --root) root=$a;; esac
	prev=$a id=$a
done
case " $* " in *" pause "*|*" update "*)
	runc --root "$root" kill "$id" KILL
	while runc --root "$root" state "$id" | grep -q '"status": "running"'; do :; done
	echo '{"level":"error","msg":"container not running"}' >> "$log"
	exit 1;;
esac
exec runc "$@"
`

// TestVerbThatComesAsTheContainerEndsIsNoFailure: neither the runtime nor the
// daemon reports a failure. A commit succeeds, and so does an update, which is for
// the next run. A pause is answered that the container is not running.
func TestVerbThatComesAsTheContainerEndsIsNoFailure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	runtime := filepath.Join(dir, "late")
	write(t, runtime, late)
	d := kit.Start(t, kit.Options{Config: map[string]any{"runtimes": map[string]any{"late": map[string]any{"path": runtime}}}})
	d.Load(image, kit.Busybox(t, nil))
	for _, verb := range [][]string{{"commit"}, {"pause"}, {"update", "--memory", "64m", "--memory-swap", "-1"}} {
		id := d.Docker("run", "-d", "--runtime", "late", image, "sleep", "1000")
		r := d.TryDocker(append(verb, id)...)
		switch {
		case verb[0] != "pause" && r.Code != 0:
			t.Errorf("%s: %s", verb[0], r.Stderr)
		case verb[0] == "pause" && (r.Code == 0 || !strings.Contains(r.Stderr, "not running")):
			t.Errorf("%s: exit code %d: %s", verb[0], r.Code, r.Stderr)
		case strings.Contains(r.Stderr, "OCI runtime"):
			t.Errorf("%s blames the runtime: %s", verb[0], r.Stderr)
		}
		d.Docker("wait", id)
	}
}
