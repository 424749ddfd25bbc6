package server

import (
	"errors"
	"os"
	"sync"
)

const (
	// backlogMemory is how many bytes of what a client has not yet read are
	// kept in memory; more goes to a file that has no name.
	backlogMemory = 1 << 20
	// backlogFile is how large that file may get, in bytes. A client that is
	// further behind is dropped: what it missed is in the log.
	backlogFile = 1 << 30
)

var errBacklog = errors.New("client too far behind")

// backlog is a queue of bytes with one reader. Putting never waits for the
// reader.
type backlog struct {
	dir string // for the file

	mu     sync.Mutex
	mem    []byte   // older than what is in the file
	file   *os.File // nil until it was needed
	rd, wr int64    // what of the file is still to be read
	closed bool
	wake   chan struct{} // one token
}

func newBacklog(dir string) *backlog {
	return &backlog{dir: dir, wake: make(chan struct{}, 1)}
}

// put appends both parts, or nothing with an error.
func (b *backlog) put(head, p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errBacklog
	}
	if b.wr == b.rd && len(b.mem)+len(head)+len(p) <= backlogMemory {
		b.mem = append(append(b.mem, head...), p...)
	} else if err := b.spill(head, p); err != nil {
		return err
	}
	b.signal()
	return nil
}

func (b *backlog) spill(head, p []byte) error {
	if b.wr+int64(len(head)+len(p)) > backlogFile {
		return errBacklog
	}
	if b.file == nil {
		f, err := os.CreateTemp(b.dir, ".backlog-")
		if err != nil {
			return err
		}
		os.Remove(f.Name())
		b.file = f
	}
	end := b.wr
	for _, part := range [][]byte{head, p} {
		if _, err := b.file.WriteAt(part, end); err != nil {
			return err
		}
		end += int64(len(part))
	}
	b.wr = end
	return nil
}

// last appends a final word, whatever the limits, and ends the queue.
func (b *backlog) last(p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	if b.wr == b.rd {
		b.mem = append(b.mem, p...)
	} else if b.file != nil {
		if _, err := b.file.WriteAt(p, b.wr); err == nil {
			b.wr += int64(len(p))
		}
	}
	b.signal()
}

func (b *backlog) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// wait waits until there are bytes, or the end, which it reports by false. With
// more there is something to do in any case.
func (b *backlog) wait(more bool) bool {
	for {
		b.mu.Lock()
		switch {
		case more, len(b.mem) > 0, b.rd < b.wr:
			b.mu.Unlock()
			return true
		case b.closed:
			if b.file != nil {
				b.file.Close()
				b.file = nil
			}
			b.mu.Unlock()
			return false
		}
		b.mem = nil // an idle client holds no memory
		b.mu.Unlock()
		<-b.wake
	}
}

// next gives bytes without waiting; spent is the slice of the call before, to
// be used again. Nil is nothing.
func (b *backlog) next(spent []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.mem) > 0 {
		p := b.mem
		if cap(spent) > 128<<10 {
			spent = nil // was a burst
		}
		b.mem = spent[:0]
		return p
	}
	if b.rd >= b.wr {
		return nil
	}
	p := make([]byte, min(b.wr-b.rd, readSize))
	n, err := b.file.ReadAt(p, b.rd)
	b.rd += int64(n)
	if b.rd == b.wr || err != nil {
		b.rd, b.wr = 0, 0
		b.file.Truncate(0)
	}
	return p[:max(n, 0)]
}

// discard ends the queue and forgets what is in it.
func (b *backlog) discard() {
	b.mu.Lock()
	b.closed = true
	b.mem, b.rd, b.wr = nil, 0, 0
	b.mu.Unlock()
	b.signal()
}
