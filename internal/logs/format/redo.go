// SPDX-License-Identifier: Apache-2.0

package format

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"time"
)

// A log can be continued by another process, even after a kill in the middle of
// a Write. That takes three things, which the owner keeps where they survive a
// killed process: the state before the Write (AppendState, Position), the bytes
// that were written, and their time. Setting the state and writing the same
// bytes at the same time again gives the same records. Redo then leaves out
// those that are in the files already.

// stateVersion is the first byte of a state.
const stateVersion = 1

// StateMax bounds what AppendState appends, in bytes.
const StateMax = 1 + 2*(1+4+8+64+4+MaxLine)

var errState = errors.New("not a log's state")

// AppendState appends the state of the lines that have not ended yet.
func (l *Log) AppendState(b []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	b = append(b, stateVersion)
	for i := Stdout; i <= Stderr; i++ {
		s := &l.streams[i]
		if s.split {
			b = append(b, 1)
			b = binary.BigEndian.AppendUint32(b, uint32(s.ordinal))
			b = binary.BigEndian.AppendUint64(b, uint64(s.at.UnixNano()))
			b = append(b, s.id[:]...)
		} else {
			b = append(b, 0)
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.held)))
		b = append(b, s.held...)
	}
	return b
}

// SetState sets the state of a log to which nothing was written yet. On an
// error the log is unchanged.
func (l *Log) SetState(b []byte) error {
	if len(b) < 1 || b[0] != stateVersion {
		return errState
	}
	b = b[1:]
	take := func(n int) (p []byte, ok bool) {
		if n < 0 || len(b) < n {
			return nil, false
		}
		p, b = b[:n], b[n:]
		return p, true
	}
	var streams [3]stream
	for i := Stdout; i <= Stderr; i++ {
		s := &streams[i]
		flag, ok := take(1)
		if !ok || flag[0] > 1 {
			return errState
		}
		if flag[0] == 1 {
			p, ok := take(4 + 8 + len(s.id))
			if !ok {
				return errState
			}
			s.split = true
			s.ordinal = int(binary.BigEndian.Uint32(p))
			s.at = time.Unix(0, int64(binary.BigEndian.Uint64(p[4:])))
			copy(s.id[:], p[12:])
			if l.cfg.Driver == DriverJSON {
				s.suffix = l.appendSuffix(nil, i, s.at)
			}
		}
		p, ok := take(4)
		if !ok {
			return errState
		}
		n := binary.BigEndian.Uint32(p)
		if n > MaxLine {
			return errState
		}
		if p, ok = take(int(n)); !ok {
			return errState
		}
		s.held = append(s.held, p...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams = streams
	return nil
}

// Position is where the next record goes: the inode of the active file and its
// size in bytes. Without a file both are 0.
func (l *Log) Position() (inode uint64, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return 0, 0
	}
	if l.inode == 0 {
		var st syscall.Stat_t
		if syscall.Fstat(l.fd, &st) != nil {
			return 0, 0
		}
		l.inode = st.Ino
	}
	return l.inode, l.size
}

// Redo makes the next Write leave out the records that a killed process has
// written since the position. If the file was rotated and removed meanwhile,
// its records are unknown and nothing is left out.
func (l *Log) Redo(inode uint64, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 || inode == 0 {
		return
	}
	var since int64
	for i := 0; i < max(l.cfg.MaxFiles, 1); i++ {
		ino, whole, ok := l.identity(i)
		if !ok {
			return
		}
		if ino == inode {
			l.skip = max(since+whole-size, 0)
			return
		}
		since += whole
	}
}

// identity returns the inode and size of the i-th file as it was before its
// compression. 0 is the active file.
func (l *Log) identity(i int) (inode uint64, size int64, ok bool) {
	path := l.cfg.Path
	if i > 0 {
		path = l.rotated(i)
	}
	if st, err := os.Stat(path); err == nil {
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, 0, false
		}
		return sys.Ino, st.Size(), true
	}
	if i == 0 {
		return 0, 0, false
	}
	extra, err := ReadExtra(path + ".gz")
	if err != nil {
		return 0, 0, false
	}
	return extra.Inode, extra.Size, true
}

// done reports whether the next record, of n bytes, is in the files already.
func (l *Log) done(n int) bool {
	if int64(n) > l.skip {
		l.skip = 0
		return false
	}
	l.skip -= int64(n)
	return true
}
