// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/swarmkit/v2/log"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"

	"holdfast/internal/durable"
)

// A raft log that was cut short can still be read: it is that of an earlier time. The
// manager would go on from there. If it was the only manager at that time, it would not
// even ask the others, but be the leader of a cluster that does not know the present
// tasks, and its agent would remove them. So what the log has committed is recorded
// beside it, and a log that has less is not used.

// progress is the record.
type progress struct {
	Schema int    `json:"schema"`
	Commit uint64 `json:"commit"` // index of the last entry that was known as committed
}

const (
	progressFile = "raft-progress.json"
	// progressEach is the time between two records.
	progressEach = 15 * time.Second
)

// committed reads from the log in a state directory up to where it is committed. The log
// may be in use. What is committed stays committed. fs.ErrNotExist: there is no log.
func committed(dir string) (commit uint64, err error) {
	logs, err := filepath.Glob(filepath.Join(dir, raftDir, "wal-v3-encrypted", "*.wal"))
	if err != nil {
		return 0, err
	}
	if len(logs) == 0 {
		return 0, fs.ErrNotExist
	}
	f, err := os.Open(logs[len(logs)-1]) // each file begins with the state
	if err != nil {
		return 0, err
	}
	defer f.Close()
	d := wal.NewDecoder(fileutil.NewFileReader(f))
	for {
		var rec walpb.Record
		err := d.Decode(&rec)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return commit, nil // the last record may be incomplete
		case err != nil:
			return 0, fmt.Errorf("%s: %w", f.Name(), err)
		case rec.Type == wal.CrcType:
			d.UpdateCRC(rec.Crc)
		case rec.Type == wal.StateType:
			state := wal.MustUnmarshalState(rec.Data)
			commit = state.Commit
		}
	}
}

func readProgress(dir string) (p progress, err error) {
	text, err := os.ReadFile(filepath.Join(dir, progressFile))
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	return p, err
}

// noteProgress records what the log has committed. Without a log, of a node that is no
// manager, there is no record.
func noteProgress(dir string) error {
	path := filepath.Join(dir, progressFile)
	commit, err := committed(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	} else if err != nil {
		return err
	}
	if p, err := readProgress(dir); err == nil && p.Commit >= commit {
		return nil
	}
	text, err := json.Marshal(progress{Schema: 1, Commit: commit})
	if err != nil {
		return err
	}
	return durable.WriteFile(path, text, 0o600)
}

// cutShort reports whether the log lacks something that it had. What can't be read here is
// swarmkit's to judge.
func cutShort(dir string) bool {
	p, err := readProgress(dir)
	if err != nil {
		return false
	}
	commit, err := committed(dir)
	return err == nil && commit < p.Commit
}

// watchProgress records the progress of the log until the context ends.
func watchProgress(ctx context.Context, dir string) {
	each := time.NewTicker(progressEach)
	defer each.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-each.C:
		}
		if err := noteProgress(dir); err != nil {
			log.L.Warnf("record the progress of the raft log: %v", err)
		}
	}
}
