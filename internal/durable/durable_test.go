// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"os"
	"path/filepath"
	"testing"
)

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestWriteFileReplacesAndLeavesNoTemporaryFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.json")
	// What a crash left, longer than the next content.
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), ".web.json.tmp"), []byte("half of a much longer record"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a\n", "the next\n"} {
		if err := WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Errorf("content %q, %v", got, err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("files: %q", got)
	}
}

func TestWriteFileThatFailsLeavesTheOldContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.json")
	if err := os.Mkdir(path, 0o700); err != nil { // a rename onto a directory fails
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("a\n"), 0o640); err == nil {
		t.Fatal("no error")
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 || got[0] != "web.json" {
		t.Errorf("files: %q", got)
	}
}

func TestRemoveTempsRemovesOnlyThem(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"web.json", ".web.json.tmp", ".web.json.tmp-123", ".hidden", "web.json.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, ".dir.tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTemps(dir); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 4 {
		t.Errorf("files: %q", got)
	}
	if err := RemoveTemps(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
}
