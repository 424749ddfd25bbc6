// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// TestRemovedImageIsNotCounted: the collection comes some time after the removal, and
// what is shown in between is as if it had come.
func TestRemovedImageIsNotCounted(t *testing.T) {
	ctx := t.Context()
	s, err := Open(context.Background(), Options{Root: filepath.Join(t.TempDir(), "images"), Snapshotter: Native, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.PinSnapshots(ctx, nil); err != nil {
		t.Fatal(err)
	}
	used := func() int64 {
		t.Helper()
		du, err := s.DiskUsage(ctx, func(string) int64 { return 0 })
		if err != nil {
			t.Fatal(err)
		}
		return du.TotalSize
	}
	archive := archiveOfOne(t, "what takes space")
	for range 3 {
		if err := s.Load(ctx, bytes.NewReader(archive), nil, nil); err != nil {
			t.Fatal(err)
		}
		if used() == 0 {
			t.Fatal("an image takes no space")
		}
		if _, err := s.Remove(ctx, "a:1", false, true, nil); err != nil {
			t.Fatal(err)
		}
		if n := used(); n != 0 {
			t.Fatalf("%d bytes are counted after the last image was removed", n)
		}
	}
}

// TestBlobThatWasNeverBegunIsRemoved: a process was killed between the directory of a
// new blob and the file with its name, or while it wrote that file.
func TestBlobThatWasNeverBegunIsRemoved(t *testing.T) {
	root := filepath.Join(t.TempDir(), "images")
	ingest := filepath.Join(root, "content", "ingest")
	files := map[string]string{"unnamed/data": "", "empty/ref": "", "begun/ref": "default/1/layer", "begun/data": "half"}
	for name, text := range files {
		path := filepath.Join(ingest, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(context.Background(), Options{Root: root, Snapshotter: Native, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	left, err := os.ReadDir(ingest)
	if err != nil || len(left) != 1 || left[0].Name() != "begun" {
		t.Errorf("left are %v, %v", left, err)
	}
}
