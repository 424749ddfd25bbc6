package event

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// Subscription is one reader of the journal. It is for one goroutine.
type Subscription struct {
	j     *Journal
	until int64
	match func(Message) bool
	err   error

	// The past: what was found of it, and the files that hold it.
	files []*os.File
	found []entry

	// The present: the next line to read.
	pos  position
	file *os.File // of pos.segment; nil before it is needed
	past bool     // only the past was asked for
	buf  []byte   // read and not yet looked at; begins at pos.off
}

// Subscribe replays the events from since to until that match, in the order of
// their time, and then follows those that are recorded from the moment of the
// call on, in the order in which they are: without a gap and without one
// twice. With neither since nor until there is no replay, as in the Docker
// Engine API; until in the past is the replay alone. An event that is recorded
// late is followed like any other and keeps its own, older time. match may be
// nil for all. Errors are told by Next.
func (j *Journal) Subscribe(since, until time.Time, match func(Message) bool) *Subscription {
	s := &Subscription{j: j, match: match}
	if !until.IsZero() {
		s.until = until.UnixNano()
		s.past = !until.After(time.Now())
	}
	files, sizes, end, err := j.snapshot()
	if err != nil {
		s.err = err
		return s
	}
	s.pos = end
	// The follower's own file is opened now: the segment may be deleted
	// before it is read.
	s.file = files[len(files)-1]
	s.files = files[:len(files)-1]
	if since.IsZero() && until.IsZero() {
		s.closePast()
		return s
	}
	var from int64
	if !since.IsZero() {
		from = since.UnixNano()
	}
	s.files = files
	if s.found, s.err = history(files, sizes, from, s.until, match); s.err != nil {
		s.release()
	}
	return s
}

// Next returns the next event; io.EOF once until has passed; ErrClosed after
// Close of the journal or the subscription; or the context's error.
func (s *Subscription) Next(ctx context.Context) (Message, error) {
	for s.err == nil && len(s.found) > 0 {
		e := s.found[0]
		s.found = s.found[1:]
		line := make([]byte, e.size)
		if _, err := s.files[e.file].ReadAt(line, e.off); err != nil {
			return s.fail(fmt.Errorf("read event journal: %w", err))
		}
		if m, ok := parse(line); ok {
			return m, nil
		}
	}
	if s.err != nil {
		return Message{}, s.err
	}
	s.closePast()
	if s.past {
		return s.fail(io.EOF)
	}
	var timer <-chan time.Time
	if s.until != 0 {
		t := time.NewTimer(time.Until(time.Unix(0, s.until)))
		defer t.Stop()
		timer = t.C
	}
	for {
		m, ok, grown, err := s.read()
		if err != nil {
			return s.fail(err)
		}
		if ok {
			if s.until != 0 && m.At().UnixNano() > s.until || s.match != nil && !s.match(m) {
				continue
			}
			return m, nil
		}
		select {
		case <-grown:
		case <-timer:
			return s.fail(io.EOF)
		case <-ctx.Done():
			return Message{}, ctx.Err()
		}
	}
}

// read returns the next event that has been recorded, or the channel that is
// closed when there is one.
func (s *Subscription) read() (m Message, ok bool, grown chan struct{}, err error) {
	for {
		if m, ok = s.buffered(); ok {
			return m, true, nil, nil
		}
		s.j.mu.Lock()
		if s.j.closed {
			s.j.mu.Unlock()
			return m, false, nil, ErrClosed
		}
		// The present segment's end, or the segment that follows.
		var size int64 = -1
		var next *segment
		for _, seg := range s.j.segments {
			if seg.number == s.pos.segment {
				size = seg.size
			}
			if seg.number > s.pos.segment && next == nil {
				next = seg
			}
		}
		grown = s.j.grown
		var nextFile *os.File
		if next != nil {
			nextFile, err = os.Open(next.path)
		}
		s.j.mu.Unlock()
		if err != nil {
			return m, false, nil, fmt.Errorf("read event journal: %w", err)
		}
		if size < 0 || next != nil {
			// No longer written to, or deleted: its end is that of the file.
			st, err := s.file.Stat()
			if err != nil {
				return m, false, nil, fmt.Errorf("read event journal: %w", err)
			}
			size = st.Size()
		}
		if s.pos.off < size {
			if nextFile != nil {
				nextFile.Close()
			}
			const most = 64 << 10
			if err := s.fill(min(size-s.pos.off, most), size); err != nil {
				return m, false, nil, err
			}
			continue
		}
		if next == nil {
			return m, false, grown, nil
		}
		s.file.Close()
		s.file, s.pos = nextFile, position{next.number, 0}
	}
}

// fill reads n bytes, or more where a line is longer; size is where the whole
// lines end.
func (s *Subscription) fill(n, size int64) error {
	for {
		s.buf = make([]byte, n)
		if _, err := s.file.ReadAt(s.buf, s.pos.off); err != nil {
			return fmt.Errorf("read event journal: %w", err)
		}
		for i := len(s.buf) - 1; i >= 0; i-- {
			if s.buf[i] == '\n' {
				s.buf = s.buf[:i+1]
				return nil
			}
		}
		if s.pos.off+n >= size {
			// Half a line at the end of a segment: nothing to tell.
			s.pos.off, s.buf = size, nil
			return nil
		}
		n = min(2*n, size-s.pos.off)
	}
}

// buffered takes the next event out of the buffer.
func (s *Subscription) buffered() (Message, bool) {
	for len(s.buf) > 0 {
		end := 0
		for s.buf[end] != '\n' {
			end++
		}
		m, ok := parse(s.buf[:end+1])
		s.buf = s.buf[end+1:]
		s.pos.off += int64(end + 1)
		if ok {
			return m, true
		}
	}
	s.buf = nil
	return Message{}, false
}

func (s *Subscription) fail(err error) (Message, error) {
	s.err = err
	s.release()
	return Message{}, err
}

func (s *Subscription) closePast() {
	for _, f := range s.files {
		if f != s.file {
			f.Close()
		}
	}
	s.files, s.found = nil, nil
}

func (s *Subscription) release() {
	s.closePast()
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// Close gives back the files that the subscription holds.
func (s *Subscription) Close() error {
	if s.err == nil {
		s.err = ErrClosed
	}
	s.release()
	return nil
}
