// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
)

func TestLogThatLacksSomethingIsNoticed(t *testing.T) {
	dir := t.TempDir()
	note := func() {
		t.Helper()
		if err := noteProgress(dir); err != nil {
			t.Fatal(err)
		}
	}
	note()
	if _, err := committed(dir); !errors.Is(err, fs.ErrNotExist) || cutShort(dir) {
		t.Errorf("without a log: %v", err)
	}
	logs := filepath.Join(dir, raftDir, "wal-v3-encrypted")
	if err := os.MkdirAll(filepath.Dir(logs), 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := wal.Create(nil, logs, []byte("member"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range uint64(200) {
		if err := w.Save(raftpb.HardState{Term: 1, Commit: i}, []raftpb.Entry{{Term: 1, Index: i + 1, Data: make([]byte, 100)}}); err != nil {
			t.Fatal(err)
		}
	}
	note()
	if got, err := committed(dir); err != nil || got != 199 {
		t.Errorf("committed is %d, %v", got, err)
	}
	if cutShort(dir) {
		t.Error("a whole log is cut short")
	}
	if err := os.Truncate(filepath.Join(logs, "0000000000000000-0000000000000000.wal"), 4096); err != nil {
		t.Fatal(err)
	}
	if got, err := committed(dir); err != nil || got == 0 || got > 40 || !cutShort(dir) {
		t.Errorf("of a log cut short %d are committed, %v, and it is not noticed", got, err)
	}
	if err := os.RemoveAll(filepath.Join(dir, raftDir)); err != nil {
		t.Fatal(err)
	}
	note()
	if _, err := readProgress(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a node that is no manager any more: %v", err)
	}
}
