// SPDX-License-Identifier: Apache-2.0

package event

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// Subscription is one reader of the journal. It is used by one goroutine.
type Subscription struct {
	j     *Journal
	until int64
	match func(Message) bool
	stop  <-chan struct{} // see EndWith
	err   error

	// The past: the events found, and the files that hold them.
	files []*os.File
	found []entry

	// The present: the next line to read. A subscriber that keeps up takes
	// events from the journal's memory by number. One that falls behind reads
	// the file until it has reached the end again.
	pos  Position
	next uint64   // number of the next event; unused while late is set
	late bool     // read the file
	file *os.File // of pos.Segment; nil unless late
	past bool     // only the past was requested
	buf  []byte   // read but not parsed yet; begins at pos.Offset
}

// Subscribe replays the matching events from since to until in order of their
// time. Then it follows the events recorded from the moment of the call on, in
// order of recording, with no gap and none twice. Without since and until there
// is no replay, as in the Docker Engine API. If until is in the past there is
// only the replay. An event that is recorded late is followed like any other,
// and keeps its own, older time. match may be nil for all events. Errors are
// returned by Next.
func (j *Journal) Subscribe(since, until time.Time, match func(Message) bool) *Subscription {
	return j.subscribe(nil, since, until, match)
}

// SubscribeFrom is Subscribe as if called when the journal ended at from,
// perhaps by another process.
func (j *Journal) SubscribeFrom(from Position, since, until time.Time, match func(Message) bool) *Subscription {
	return j.subscribe(&from, since, until, match)
}

func (j *Journal) subscribe(at *Position, since, until time.Time, match func(Message) bool) *Subscription {
	// Events before the journal's end are read from its files.
	s := &Subscription{j: j, match: match, late: at != nil}
	if !until.IsZero() {
		s.until = until.UnixNano()
		s.past = !until.After(time.Now())
	}
	var from int64
	if !since.IsZero() {
		from = since.UnixNano()
	}
	files, sizes, end, next, err := j.snapshot(at, from, since.IsZero() && until.IsZero())
	if err != nil {
		s.err = err
		return s
	}
	s.files, s.pos, s.next = files, end, next
	if s.found, s.err = history(files, sizes, from, s.until, match); s.err != nil {
		s.release()
	} else if len(s.found) == 0 {
		s.closePast()
	}
	return s
}

// EndWith makes Next return io.EOF once stop is closed and the events recorded
// until then have been returned.
func (s *Subscription) EndWith(stop <-chan struct{}) { s.stop = stop }

// Next returns the next event; io.EOF once until has passed; ErrClosed after
// Close of the journal or the subscription; or the context's error. Subscribers
// share the event's attributes, so they must not change them.
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
		case <-s.stop:
			return s.fail(io.EOF)
		case <-ctx.Done():
			return Message{}, ctx.Err()
		}
	}
}

// read returns the next recorded event, or the channel that is closed when
// there is one.
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
		last := s.j.segments[len(s.j.segments)-1]
		if s.pos == (Position{last.number, last.size}) {
			// The end is reached. From here on read from memory.
			s.late, s.next = false, s.j.recent.next
			grown = s.j.grown
			s.j.mu.Unlock()
			s.closeFile()
			return m, false, grown, nil
		}
		if e, ok := s.j.recent.at(s.next); ok && !s.late {
			s.j.mu.Unlock()
			s.pos, s.next = e.end, s.next+1
			return e.m, true, nil, nil
		}
		s.late, grown = true, s.j.grown
		// size is the end of the segment at pos, or -1 if the segment is gone.
		var size int64 = -1
		var here, next *segment
		for _, seg := range s.j.segments {
			if seg.number == s.pos.Segment {
				here, size = seg, seg.size
			}
			if seg.number > s.pos.Segment && next == nil {
				next = seg
			}
		}
		var nextFile *os.File
		if here != nil && s.file == nil {
			s.file, err = os.Open(here.path)
		}
		if next != nil && err == nil {
			nextFile, err = os.Open(next.path)
		}
		s.j.mu.Unlock()
		if err != nil {
			return m, false, nil, fmt.Errorf("read event journal: %w", err)
		}
		if s.file != nil && (size < 0 || next != nil) {
			// The segment is no longer written to, or deleted. It ends where
			// the file ends.
			st, err := s.file.Stat()
			if err != nil {
				return m, false, nil, fmt.Errorf("read event journal: %w", err)
			}
			size = st.Size()
		}
		if s.pos.Offset < size {
			if nextFile != nil {
				nextFile.Close()
			}
			const most = 64 << 10
			if err := s.fill(min(size-s.pos.Offset, most), size); err != nil {
				return m, false, nil, err
			}
			continue
		}
		if next == nil {
			return m, false, grown, nil
		}
		s.closeFile()
		s.file, s.pos = nextFile, Position{next.number, 0}
	}
}

// fill reads at least n bytes, and more if a line is longer. size is where the
// whole lines end.
func (s *Subscription) fill(n, size int64) error {
	for {
		s.buf = make([]byte, n)
		if _, err := s.file.ReadAt(s.buf, s.pos.Offset); err != nil {
			return fmt.Errorf("read event journal: %w", err)
		}
		for i := len(s.buf) - 1; i >= 0; i-- {
			if s.buf[i] == '\n' {
				s.buf = s.buf[:i+1]
				return nil
			}
		}
		if s.pos.Offset+n >= size {
			// A partial line at the end of a segment is not an event.
			s.pos.Offset, s.buf = size, nil
			return nil
		}
		n = min(2*n, size-s.pos.Offset)
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
		s.pos.Offset += int64(end + 1)
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
		f.Close()
	}
	s.files, s.found = nil, nil
}

func (s *Subscription) closeFile() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

func (s *Subscription) release() {
	s.closePast()
	s.closeFile()
}

// Close closes the files of the subscription.
func (s *Subscription) Close() error {
	if s.err == nil {
		s.err = ErrClosed
	}
	s.release()
	return nil
}
