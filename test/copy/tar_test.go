// SPDX-License-Identifier: Apache-2.0

package copy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// An unprivileged user unpacks an engine's archive with tar(1), including
// read-only folders with their contents and times. tar(1) can do that only if
// the entries of a folder directly follow the folder.
func TestTarUnpacksReadOnlyFoldersAsAnyUser(t *testing.T) {
	d := live(t)
	d.Docker("run", "--name", "box", image, "sh", "-c",
		"mkdir -p /d/in/deep /d/other && echo 1 >/d/file && echo 2 >/d/in/file && echo 3 >/d/in/deep/file && echo 4 >/d/other/file &&"+
			" touch -d '2001-02-03 04:05:06' /d/in/deep /d/in /d/other /d && chmod 555 /d/in/deep /d/in /d/other /d")
	want := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	for name, args := range map[string][]string{"export": {"export", "box"}, "cp": {"cp", "box:/d", "-"}} {
		var packed bytes.Buffer
		cmd := d.DockerCommand(t.Context(), args...)
		cmd.Stdout, cmd.Stderr = &packed, os.Stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		dir := t.TempDir()
		const nobody = 65534
		for at := dir; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
			if err := os.Chmod(at, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		tar := exec.Command("tar", "-x", "-C", dir, "d")
		tar.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		tar.Stdin = &packed
		if out, err := tar.CombinedOutput(); err != nil {
			t.Errorf("%s: tar: %v\n%s", name, err, out)
		}
		for path, content := range map[string]string{"d/file": "1\n", "d/in/file": "2\n", "d/in/deep/file": "3\n", "d/other/file": "4\n"} {
			if got, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(got) != content {
				t.Errorf("%s: %s: %q, %v", name, path, got, err)
			}
		}
		for _, path := range []string{"d", "d/in", "d/in/deep", "d/other"} {
			st, err := os.Stat(filepath.Join(dir, path))
			if err != nil || !st.ModTime().Equal(want) || st.Mode().Perm() != 0o555 {
				t.Errorf("%s: %s: %v, %v", name, path, st, err)
			}
		}
	}
	d.Docker("rm", "box")
}
