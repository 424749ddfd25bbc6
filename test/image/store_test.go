// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/jsonstream"
	"golang.org/x/sys/unix"

	"holdfast/internal/image"
	"holdfast/internal/image/mounts"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run `make test`")
	}
}

// newStore opens a store in a directory of its own. No container uses its
// layers.
func newStore(t testing.TB, change func(*image.Options)) *image.Store {
	t.Helper()
	needRoot(t)
	s := openStore(t, filepath.Join(tempDir(t), "images"), change)
	must(t, s.PinSnapshots(context.Background(), nil))
	return s
}

func openStore(t testing.TB, root string, change func(*image.Options)) *image.Store {
	t.Helper()
	o := image.Options{Root: root, Snapshotter: "overlay2", Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&o)
	}
	s, err := image.Open(context.Background(), o)
	must(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// tempDir is t.TempDir, but unmounts what is mounted there before the removal.
func tempDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		at, err := mounts.Points(func(p string) bool { return strings.HasPrefix(p, dir+"/") })
		if err != nil {
			t.Error(err)
		}
		for _, p := range slices.Backward(at) {
			if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", p, err)
			}
		}
	})
	return dir
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if os.Getenv("HOLDFAST_TEST_LOG") != "" {
		fmt.Fprintf(os.Stderr, "%s: %s", w.t.Name(), p)
	}
	return len(p), nil
}

// messages collects the progress messages of a pull.
type messages struct {
	mu  sync.Mutex
	all []jsonstream.Message
}

func (m *messages) add(msg jsonstream.Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, msg)
}

func (m *messages) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for _, msg := range m.all {
		if msg.ID != "" {
			b.WriteString(msg.ID + ": ")
		}
		b.WriteString(msg.Status + strings.TrimSpace(msg.Stream) + "\n")
	}
	return b.String()
}

func pull(t testing.TB, s *image.Store, ref string) string {
	t.Helper()
	var m messages
	if err := s.Pull(context.Background(), ref, nil, nil, false, m.add); err != nil {
		t.Fatalf("pull %s: %v\n%s", ref, err, m.text())
	}
	return m.text()
}

// mounted prepares and mounts a container's root file system of an image. It
// returns the container's directory and the mount point.
func mounted(t testing.TB, s *image.Store, ref string) (dir, target string) {
	t.Helper()
	ctx := context.Background()
	img, err := s.Resolve(ctx, ref, nil)
	must(t, err)
	base := tempDir(t)
	dir, target = filepath.Join(base, "container"), filepath.Join(base, "mnt")
	must(t, s.PrepareRootfs(ctx, img, dir))
	must(t, s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, target, false))
	return dir, target
}

func read(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	return string(raw)
}

func wants(t testing.TB, err error, kind func(error) bool, text string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", text)
	}
	if !kind(err) {
		t.Errorf("error %q has the wrong kind", err)
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("error %q does not contain %q", err, text)
	}
}

// leftovers lists the files of a store that an empty store does not have.
func leftovers(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	for _, below := range []string{"content/blobs/sha256", "content/ingest", "snapshots/overlayfs/snapshots", "snapshots/native/snapshots", "rootfs"} {
		entries, err := os.ReadDir(filepath.Join(root, below))
		if os.IsNotExist(err) {
			continue
		}
		must(t, err)
		for _, e := range entries {
			out = append(out, below+"/"+e.Name())
		}
	}
	return out
}
