// SPDX-License-Identifier: Apache-2.0

package beneath

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func open1(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := Root(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// tree makes a root with links in it, and next to it a directory that no path in
// the root may lead to.
func tree(t *testing.T) (root, outside string) {
	t.Helper()
	dir := t.TempDir()
	root, outside = filepath.Join(dir, "root"), filepath.Join(dir, "outside")
	for _, d := range []string{root + "/a/b", outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{root + "/a/b/f": "mine", outside + "/f": "theirs"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"in": "a/b", "up": "../outside", "absolute": outside, "own": "/a/b", "a/back": "../a/b"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	return root, outside
}

func TestOpenStaysBelowItsRoot(t *testing.T) {
	path, _ := tree(t)
	root := open1(t, path)
	for name, want := range map[string]error{
		"a/b": nil, "in": nil, "a/back/f": nil, "a/../in/f": nil, ".": nil,
		"up": unix.EXDEV, "up/f": unix.EXDEV, "absolute/f": unix.EXDEV, "own": unix.EXDEV, "..": unix.EXDEV, "a/../../outside": unix.EXDEV, "/a": unix.EXDEV,
		"none": unix.ENOENT, "a/b/f/x": unix.ENOTDIR,
	} {
		f, err := Open(root, name, unix.O_PATH)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if err == nil {
			f.Close()
		}
	}
}

func TestFilesAreReadInTheRootAndOnlyRegularOnes(t *testing.T) {
	path, _ := tree(t)
	root := open1(t, path)
	if err := unix.Mkfifo(path+"/fifo", 0o666); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"a/b/f": nil, "/in/f": nil, "own/f": nil,
		"up/f": fs.ErrNotExist, "absolute/f": fs.ErrNotExist, "fifo": ErrNotRegular, "a": ErrNotRegular,
	} {
		b, err := ReadFile(root, name, 4)
		if !errors.Is(err, want) || err == nil && string(b) != "mine" {
			t.Errorf("%s: %q, %v, want %v", name, b, err, want)
		}
	}
	if _, err := ReadFile(root, "a/b/f", 3); !errors.Is(err, ErrTooLarge) {
		t.Errorf("above the limit: %v", err)
	}
}

func TestWhatIsInThePlaceOfAFolderIsReplaced(t *testing.T) {
	path, outside := tree(t)
	root := open1(t, path)
	if err := os.WriteFile(path+"/file", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/b", "up", "absolute/deep/er", "in", "file", "new/er"} {
		if err := MakeFolder(root, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for p := name; p != "."; p = filepath.Dir(p) {
			st, err := os.Lstat(filepath.Join(path, p))
			if err != nil || !st.IsDir() || st.Mode().Perm() != 0o755 {
				t.Errorf("%s: %v, %v", p, st, err)
			}
		}
	}
	if b, err := os.ReadFile(path + "/a/b/f"); err != nil || string(b) != "mine" {
		t.Errorf("a folder that was one: %q, %v", b, err)
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}

func TestWhatIsInThePlaceOfAFileIsReplaced(t *testing.T) {
	path, outside := tree(t)
	if err := os.Symlink(outside+"/f", path+"/f"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path+"/fifo", 0o666); err != nil {
		t.Fatal(err)
	}
	root := open1(t, path)
	for _, name := range []string{"f", "fifo", "new"} {
		if err := MakeFile(root, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if st, err := os.Lstat(filepath.Join(path, name)); err != nil || !st.Mode().IsRegular() || st.Size() != 0 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if err := MakeFile(root, "a"); err != nil || !IsFolder(root, "a") {
		t.Errorf("a folder: %v", err)
	}
	if b, err := os.ReadFile(outside + "/f"); err != nil || string(b) != "theirs" {
		t.Errorf("outside: %q, %v", b, err)
	}
}

func TestUsageCountsTheTreeOnceAndNothingElse(t *testing.T) {
	path, outside := tree(t)
	if err := os.WriteFile(outside+"/big", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := Usage(context.Background(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"/a/big", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/one", "/two"} {
		if err := os.Link(path+"/a/big", path+name); err != nil {
			t.Fatal(err)
		}
	}
	after, err := Usage(context.Background(), path, "")
	if err != nil || after-before < 1<<20 || after-before > 1<<20+1<<16 {
		t.Errorf("%d, then %d bytes, %v", before, after, err)
	}
	// Compared with itself a tree uses nothing. Compared with an older state it
	// uses what is new.
	if n, err := Usage(context.Background(), path, path); err != nil || n != 0 {
		t.Errorf("nothing has changed: %d bytes, %v", n, err)
	}
	if n, err := Usage(context.Background(), path, outside); err != nil || n < 1<<20 {
		t.Errorf("all is new: %d bytes, %v", n, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Usage(ctx, path, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := Usage(context.Background(), path+"/none", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such folder: %v", err)
	}
}

func BenchmarkMakeSystemFolders(b *testing.B) {
	dir := b.TempDir()
	for _, name := range systemFolders {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		root, err := Root(dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := MakeSystemFolders(root); err != nil {
			b.Fatal(err)
		}
		root.Close()
	}
}
