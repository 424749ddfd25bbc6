// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"io"
	"os"

	"holdfast/internal/shim/proto"
)

// journalLimit is the size in bytes above which the older half of the journal is
// discarded. The journal is in memory (the run directory is a tmpfs), and without a
// daemon nothing else bounds it.
const journalLimit = 4 << 20

// journalTidy is the size in bytes from which on entries are discarded that a daemon
// has in its own journal. Without it the journal of a long run would have all of its
// entries, and each new daemon would read them.
const journalTidy = 4 << 10

// journal is the file of entries, one JSON line each. It is not safe for
// concurrent use; record's lock guards it.
type journal struct {
	path string
	f    *os.File
	size int64
	seq  uint64 // of the last entry
	left int64  // the size after entries were discarded
}

// openJournal opens the file. With keepEntries it keeps its entries and cuts off a
// line that was torn by a crash; without, it empties the file.
func openJournal(path string, keepEntries bool) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	j := &journal{path: path, f: f}
	if keepEntries {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Close()
			return nil, err
		}
		j.size = int64(bytes.LastIndexByte(b, '\n') + 1)
		for _, e := range parseJournal(b, 0) {
			j.seq = max(j.seq, e.Seq)
		}
	}
	if err := f.Truncate(j.size); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

// append numbers the entry and appends it in a single write.
func (j *journal) append(e *proto.Entry) error {
	j.seq++
	e.Seq = j.seq
	line, err := proto.Marshal(e)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if j.size+int64(len(line)) > journalLimit {
		if err := j.shrink(); err != nil {
			return err
		}
	}
	n, err := j.f.Write(line)
	if err != nil {
		// A torn line must not join the next one.
		if n > 0 && j.f.Truncate(j.size) != nil {
			j.size += int64(n)
		}
		return err
	}
	j.size += int64(n)
	return nil
}

// shrink replaces the file by its newer half.
func (j *journal) shrink() error {
	b, err := os.ReadFile(j.path)
	if err != nil {
		return err
	}
	half := b[len(b)/2:]
	return j.replace(half[bytes.IndexByte(half, '\n')+1:])
}

// discard removes the entries up to seq, except for the newest one that tells whether
// the container runs. It does nothing while the file is short.
func (j *journal) discard(seq uint64) error {
	if j.size < max(journalTidy, 2*j.left) || seq > j.seq || j.seq-seq > 4 {
		return nil // the newest entries will be acknowledged soon, too
	}
	b, err := os.ReadFile(j.path)
	if err != nil {
		return err
	}
	var turn, rest []byte
	for line := range bytes.Lines(b) {
		var e proto.Entry
		switch err := proto.Unmarshal(line, &e); {
		case err != nil:
		case e.Seq > seq:
			rest = append(rest, line...)
		case e.Action == proto.ActionStart, e.Action == proto.ActionDie:
			turn = line
		}
	}
	if err := j.replace(append(bytes.Clone(turn), rest...)); err != nil {
		return err
	}
	j.left = j.size
	return nil
}

// replace replaces the contents of the file. A kill leaves the file as it was, or as it
// is then.
func (j *journal) replace(text []byte) error {
	tmp := j.path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil {
		err = os.Rename(tmp, j.path)
	}
	if err != nil {
		f.Close()
		os.Remove(tmp)
		return err
	}
	j.f.Close()
	j.f, j.size = f, int64(len(text))
	return nil
}

// after returns the entries with a higher number than seq.
func (j *journal) after(seq uint64) []proto.Entry {
	if seq >= j.seq {
		return nil
	}
	b := make([]byte, j.size)
	if _, err := j.f.ReadAt(b, 0); err != nil && err != io.EOF {
		logf("read journal: %v", err)
		return nil
	}
	return parseJournal(b, seq)
}

// seqMax is larger than any number that an entry gets. A larger number in the file
// is damage; counting on from it could overflow.
const seqMax = 1 << 62

// parseJournal skips lines that are not entries, such as a torn one.
func parseJournal(b []byte, after uint64) []proto.Entry {
	var entries []proto.Entry
	for line := range bytes.Lines(b) {
		var e proto.Entry
		if proto.Unmarshal(line, &e) == nil && e.Seq > after && e.Seq < seqMax {
			entries = append(entries, e)
		}
	}
	return entries
}
