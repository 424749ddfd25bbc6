// SPDX-License-Identifier: Apache-2.0

package largefile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// holey writes a file with data at the given offsets, and returns its contents.
func holey(t *testing.T, path string, size int64, at ...int64) []byte {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 200_000)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	for _, off := range at {
		if _, err := f.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func copyFile(ctx context.Context, t *testing.T, from, to string) error {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	return copyData(ctx, dst, src)
}

func TestCopyHasTheDataAndTheHolesOfItsSource(t *testing.T) {
	for name, at := range map[string][]int64{
		"all hole": {}, "at the begin": {0}, "at the end": {40<<20 - 200_000}, "in the middle": {1, 17<<20 + 3, 30 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			want := holey(t, dir+"/from", 40<<20, at...)
			if err := copyFile(t.Context(), t, dir+"/from", dir+"/to"); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(dir + "/to")
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the copy differs (%v)", err)
			}
			if from, to := blocks(t, dir+"/from"), blocks(t, dir+"/to"); to > from+1<<20 {
				t.Errorf("the copy takes %d bytes of the disk, its source %d", to, from)
			}
		})
	}
}

func TestCopyAndReadEndWithTheContext(t *testing.T) {
	dir := t.TempDir()
	holey(t, dir+"/from", 64<<20, 0, 32<<20)
	ended, end := context.WithCancelCause(t.Context())
	cause := errors.New("the client is gone")
	end(cause)
	if err := copyFile(ended, t, dir+"/from", dir+"/to"); !errors.Is(err, cause) {
		t.Errorf("copy: %v", err)
	}
	if err := Feed(ended, io.Discard, dir+"/from"); !errors.Is(err, cause) {
		t.Errorf("read: %v", err)
	}
	// In the middle.
	soon, stop := context.WithCancelCause(t.Context())
	sink := &ending{stop, cause, 0}
	if err := Feed(soon, sink, dir+"/from"); !errors.Is(err, cause) || sink.n > chunk {
		t.Errorf("read: %v after %d bytes", err, sink.n)
	}
}

// ending ends a context with the first bytes that are written.
type ending struct {
	end   context.CancelCauseFunc
	cause error
	n     int
}

func (e *ending) Write(p []byte) (int, error) {
	e.end(e.cause)
	e.n += len(p)
	return len(p), nil
}

func TestFindReturnsLargeFilesAndThoseWithHoles(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/in/deep", 0o755); err != nil {
		t.Fatal(err)
	}
	holey(t, dir+"/in/deep/large", Large)
	holey(t, dir+"/in/holes", 2<<20)
	holey(t, dir+"/in/small", 300_000, 0, 100_000)
	holey(t, dir+"/other", Large)
	if err := os.Symlink("deep/large", dir+"/in/link"); err != nil {
		t.Fatal(err)
	}
	names := func(path string) string {
		t.Helper()
		found, err := Find(t.Context(), dir, filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, f := range found {
			all = append(all, f.Path)
		}
		return strings.Join(all, " ")
	}
	for path, want := range map[string]string{
		"in": "in/deep/large in/holes", "in/deep/large": "in/deep/large", "in/small": "", "in/link": "", "missing": "",
	} {
		if got := names(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	var at unix.Statfs_t
	if err := unix.Statfs(dir, &at); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/other", int64(at.Blocks)*at.Bsize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(t.Context(), dir, dir+"/other"); err == nil || !strings.Contains(err.Error(), "/other has") {
		t.Errorf("a file larger than the file system: %v", err)
	}
}
