// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDamagedDatabaseIsSetAsideAndNothingIsCollected(t *testing.T) {
	root := filepath.Join(t.TempDir(), "images")
	path := filepath.Join(root, databaseFile)
	var log bytes.Buffer
	open := func() *Store { return openLogged(t, root, &log) }
	if err := open().Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range damages(whole) {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(path + damagedSuffix); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			log.Reset()
			s := open()
			s.rootfs.pins.known = true
			if s.rootfs.pins.unread == "" {
				t.Error("what was in the database may be collected")
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			aside, err := os.ReadFile(path + damagedSuffix)
			if err != nil || !bytes.Equal(aside, b) {
				t.Errorf("set aside are %d bytes, %v", len(aside), err)
			}
			if !strings.Contains(log.String(), path) {
				t.Errorf("the log does not name it: %s", &log)
			}
		})
	}
}

// TestDamagedDatabaseOfAStorageDriverIsSetAside: the directories that containers use are
// left alone, and after the image was loaded again containers can be made from it.
func TestDamagedDatabaseOfAStorageDriverIsSetAside(t *testing.T) {
	ctx := t.Context()
	root := filepath.Join(t.TempDir(), "images")
	path := filepath.Join(root, "snapshots", Native, databaseFile)
	var log bytes.Buffer
	open := func() *Store { return openLogged(t, root, &log) }
	archive := archiveOfOne(t, "what a container reads")
	load := func(t *testing.T, s *Store) {
		t.Helper()
		if err := s.Load(ctx, bytes.NewReader(archive), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	s := open()
	load(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "snapshots", Native, "snapshots", "*", "file"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range damages(whole) {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(path + damagedSuffix); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			log.Reset()
			open().Close() // as if the daemon died before anything was loaded
			s := open()
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			if err := s.PinSnapshots(ctx, nil); err != nil {
				t.Fatal(err)
			}
			if s.rootfs.pins.ready() {
				t.Error("what was in the database may be collected")
			}
			if aside, err := os.ReadFile(path + damagedSuffix); err != nil || !bytes.Equal(aside, b) {
				t.Errorf("set aside are %d bytes, %v", len(aside), err)
			}
			if !strings.Contains(log.String(), path) {
				t.Errorf("the log does not name it: %s", &log)
			}
			load(t, s)
			img, err := s.Resolve(ctx, "a:1", nil)
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), "container")
			if err := s.PrepareRootfs(ctx, img, dir); err != nil {
				t.Fatal(err)
			}
			for _, file := range append(files, filepath.Join(dir, copyDir, "file")) {
				if text, err := os.ReadFile(file); err != nil || string(text) != "what a container reads" {
					t.Errorf("%s: %q, %v", file, text, err)
				}
			}
		})
	}
}

// damages are what a loss of power may leave of a file.
func damages(whole []byte) map[string][]byte {
	half := append([]byte(nil), whole...)
	clear(half[len(half)/4:])
	return map[string][]byte{"empty": nil, "cut short": whole[:len(whole)/4], "zeroed": make([]byte, len(whole)), "half zeroed": half}
}

// archiveOfOne is an archive of the image a:1, whose file "file" has a content.
func archiveOfOne(t *testing.T, content string) []byte {
	t.Helper()
	layer := tarOf(t, fileEntry("file", content))
	config := configOf(t, layer)
	manifest := jsonOf(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": descOf("application/vnd.oci.image.config.v1+json", config),
		"layers": []any{descOf("application/vnd.oci.image.layer.v1.tar", string(layer))},
	})
	top := descOf("application/vnd.oci.image.manifest.v1+json", manifest)
	top["annotations"] = map[string]string{"io.containerd.image.name": "docker.io/library/a:1"}
	return ociArchive(t, jsonOf(t, map[string]any{"schemaVersion": 2, "manifests": []any{top}}), manifest, config, string(layer))
}

// openLogged opens a store that logs into a buffer.
func openLogged(t *testing.T, root string, log *bytes.Buffer) *Store {
	t.Helper()
	s, err := Open(context.Background(), Options{Root: root, Snapshotter: Native, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
