// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"holdfast/internal/config"
)

func TestBindOfAFolderWithTheDaemonsMountsIsASlave(t *testing.T) {
	root := t.TempDir()
	data, run := filepath.Join(root, "lib", "data"), filepath.Join(root, "run", "exec")
	for _, dir := range []string{filepath.Join(data, "volumes"), run, filepath.Join(root, "lib", "database"), filepath.Join(root, "other")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(run, "holdfast.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, "run"), filepath.Join(root, "var-run")); err != nil {
		t.Fatal(err)
	}
	cfg := &Config{Config: &config.Config{DataRoot: data, ExecRoot: run}}

	for _, tc := range []struct {
		source string
		asked  mount.Propagation
		want   mount.Propagation
		err    string
	}{
		{source: "/", want: "rslave"},
		{source: root, want: "rslave"},
		{source: root, asked: "rslave", want: "rslave"},
		{source: root, asked: "rshared", want: "rshared"},
		{source: root, asked: "rprivate", err: "the propagation must be rslave or rshared, not rprivate"},
		{source: root, asked: "slave", err: "not slave"},
		{source: data, want: "rslave"},
		{source: filepath.Join(data, "volumes"), want: "rslave"},
		{source: filepath.Join(root, "var-run"), want: "rslave"},
		{source: socket, want: "rprivate"},
		{source: filepath.Join(root, "lib", "database"), want: "rprivate"},
		{source: filepath.Join(root, "other"), want: "rprivate"},
		{source: filepath.Join(root, "missing"), want: "rprivate"},
		{source: filepath.Join(root, "other"), asked: "shared", want: "shared"},
	} {
		m := pointOf(mount.Mount{Type: mount.TypeBind, Source: tc.source, Target: "/x", BindOptions: &mount.BindOptions{Propagation: tc.asked}}, "")
		err := cfg.setPropagation(&m)
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s %s: error %v, want %q", tc.source, tc.asked, err, tc.err)
			}
		case err != nil:
			t.Errorf("%s %s: %v", tc.source, tc.asked, err)
		case m.Propagation != tc.want:
			t.Errorf("%s %s: %s, want %s", tc.source, tc.asked, m.Propagation, tc.want)
		}
	}

	volume := mountPoint{MountPoint: moby.MountPoint{Type: mount.TypeVolume, Source: filepath.Join(data, "volumes")}}
	if err := cfg.setPropagation(&volume); err != nil || volume.Propagation != "" {
		t.Errorf("a volume: %q, %v", volume.Propagation, err)
	}
}
