// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"os"
	"sync"
)

// queue has the output that waits for a client. It is guarded by its session's
// lock. Appending never blocks: owners wait for room before they read more from the
// process, and at its end may append all that is left.
type queue struct {
	mem    []byte // older than the content of file
	closed bool

	// The backlog file of an earlier release, which can only come with a handover.
	// afterFile is newer than the content of file.
	file      *os.File
	rd, wr    int64
	afterFile []byte
}

const (
	// fileChunk is how many bytes of the file are read at once.
	fileChunk = 64 << 10
	// spareMax is how large a written buffer may be to be used again: a larger one is
	// left from a burst.
	spareMax = 128 << 10
)

// spares are written buffers of all sessions, so that an idle client holds none.
var spares sync.Pool

func spare() []byte {
	if p, _ := spares.Get().(*[]byte); p != nil {
		return *p
	}
	return nil
}

func giveBack(p []byte) {
	if 0 < cap(p) && cap(p) <= spareMax {
		p = p[:0]
		spares.Put(&p)
	}
}

// tail is where output is appended.
func (q *queue) tail() *[]byte {
	if q.file != nil {
		return &q.afterFile
	}
	if q.mem == nil {
		q.mem = spare()
	}
	return &q.mem
}

func (q *queue) empty() bool { return len(q.mem) == 0 && q.file == nil }

// full reports whether the client is so far behind that the owner must wait.
func (q *queue) full(bound int) bool {
	return !q.closed && (len(q.mem) >= bound || q.file != nil)
}

// next removes and returns the oldest bytes, which may be none even if the queue is
// not empty.
func (q *queue) next() []byte {
	if len(q.mem) == 0 && q.file != nil {
		p := make([]byte, max(0, min(q.wr-q.rd, fileChunk)))
		n, err := q.file.ReadAt(p, q.rd)
		q.rd += int64(max(n, 0))
		if q.rd >= q.wr || err != nil {
			q.file.Close()
			q.file, q.mem, q.afterFile = nil, q.afterFile, nil
		}
		return p[:max(n, 0)]
	}
	p := q.mem
	q.mem = nil
	return p
}

// discard ends the queue and drops its content.
func (q *queue) discard() {
	q.closed = true
	q.mem, q.afterFile = nil, nil
	if q.file != nil {
		q.file.Close()
		q.file = nil
	}
}
