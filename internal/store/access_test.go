// SPDX-License-Identifier: Apache-2.0

package store

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode().Perm()
}

func TestRootsAreClosedAndPublicFoldersLeftAsTheyAre(t *testing.T) {
	for _, c := range []struct {
		name   string
		before fs.FileMode
		access Access
		want   fs.FileMode
	}{
		{"of an earlier release", 0o711, Access{}, 0o710},
		{"made by an administrator", 0o755, Access{}, 0o710},
		{"closed further", 0o700, Access{}, 0o710},
		{"with a socket for everybody", 0o710, Access{Everyone: true}, 0o711},
		{"that others use", 0o777 | fs.ModeSticky, Access{}, 0o777},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, exec := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "exec")
			if _, err := Open(data, exec); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(exec, c.before); err != nil {
				t.Fatal(err)
			}
			// The group is the test's own, because only root may change it to another.
			s := &Store{data: data, exec: exec}
			c.access.Group = -1
			if err := s.closeRoots(c.access); err != nil {
				t.Fatal(err)
			}
			if got := modeOf(t, exec); got != c.want {
				t.Errorf("the exec root has mode %o, want %o", got, c.want)
			}
			if got := modeOf(t, data); got != RootMode {
				t.Errorf("the data root has mode %o, want %o", got, RootMode)
			}
		})
	}
}

func TestFoldersOfAnEarlierReleaseAreClosedWhenTheStoreIsOpened(t *testing.T) {
	data, exec := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "exec")
	s, err := Open(data, exec)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range s.folders() {
		if err := os.Chmod(f.path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(data, exec); err != nil {
		t.Fatal(err)
	}
	for _, f := range s.folders() {
		if got := modeOf(t, f.path); got&0o007 != 0 {
			t.Errorf("%s has mode %o", f.path, got)
		}
	}
}
