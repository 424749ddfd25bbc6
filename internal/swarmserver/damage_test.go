// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDamagedLogIsToldFromADiskThatFails(t *testing.T) {
	for text, want := range map[string]bool{
		"can't initialize raft node: irreparable WAL error: walpb: crc mismatch":                             true,
		"failed to open WAL: wal: file not found":                                                            true,
		"tocommit(9) is out of range [lastIndex(3)]. Was the raft log corrupted, truncated, or lost?":        true,
		"5 state.commit 12 is out of range [3, 7]":                                                           true,
		"failed to decrypt WAL: no decrypter found":                                                          false,
		"context deadline exceeded":                                                                          false,
		"x509: certificate has expired or is not yet valid: current time 2026-11-30T21:00:00Z is after 2026": false,
	} {
		if got := damagedBy(errors.New(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	for _, passing := range []error{unix.ENOSPC, unix.EIO, unix.EMFILE} {
		if damagedBy(fmt.Errorf("failed to open WAL: %w", &os.PathError{Op: "open", Path: "raft", Err: passing})) {
			t.Errorf("%v is taken for damage", passing)
		}
	}
	if damagedBy(nil) {
		t.Error("nothing is taken for damage")
	}
}

func TestLogIsSetAsideUntilAnotherIsInItsPlace(t *testing.T) {
	dir := t.TempDir()
	raft := filepath.Join(dir, raftDir)
	mkdir := func() {
		t.Helper()
		if err := os.Mkdir(raft, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mkdir()
	if err := aside(dir); err != nil {
		t.Errorf("nothing is aside, but %v", err)
	}
	err := setAside(dir)
	var d *damageError
	if !errors.As(err, &d) || !strings.Contains(err.Error(), "docker node demote") || !strings.Contains(err.Error(), "--force-new-cluster") {
		t.Errorf("set aside: %v", err)
	}
	if _, err := os.Stat(d.path); err != nil {
		t.Error(err)
	}
	if err := aside(dir); !errors.As(err, &d) {
		t.Errorf("after a restart: %v", err)
	}
	mkdir() // a backup
	if err := aside(dir); err != nil {
		t.Errorf("with a backup in place: %v", err)
	}
}
