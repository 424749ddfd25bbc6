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
	open := func() *Store {
		t.Helper()
		s, err := Open(context.Background(), Options{Root: root, Snapshotter: Native, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if err := open().Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	half := append([]byte(nil), whole...)
	clear(half[len(half)/4:])
	for name, b := range map[string][]byte{"empty": nil, "cut short": whole[:len(whole)/4], "zeroed": make([]byte, len(whole)), "half zeroed": half} {
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
