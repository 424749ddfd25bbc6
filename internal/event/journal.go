// SPDX-License-Identifier: Apache-2.0

package event

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
)

// The journal is a sequence of segments, <number>.jsonl, with a line per event.
// The first line of a segment is its head, with all sources that were known
// when it began. So older segments can be deleted, and events that were in them
// are still not recorded twice.

// Options are options of a journal.
type Options struct {
	// MaxBytes bounds the total size of the segments. If they exceed it, the
	// oldest is deleted. 0 means 64 MiB.
	MaxBytes int64
}

const (
	defaultMaxBytes = 64 << 20
	segmentsKept    = 8 // the number of segments that share MaxBytes
	segmentSuffix   = ".jsonl"
	// headSchema is the schema number of the format described above.
	headSchema = 1
)

type head struct {
	Schema  int     `json:"schema"`
	Sources sources `json:"sources,omitempty"`
}

// Journal is an open journal. Its methods may be called by several
// goroutines.
type Journal struct {
	dir string
	max int64

	mu       sync.Mutex
	segments []*segment // oldest first; the last one is written to
	file     *os.File   // the last segment
	seen     sources
	torn     bool          // the last segment ends with a partial line
	grown    chan struct{} // closed and replaced by each Append
	recent   recent        // the events that Append recorded last
	closed   bool
	watch    *os.File // not nil if another process writes, see Follow
	changed  func()   // see OpenView
}

// segment is one file. Readers keep it open while they need it.
type segment struct {
	number uint64
	path   string
	size   int64 // of its whole lines; guarded by Journal.mu
	// damaged: when it was opened it had no head, lines that are no events, or a
	// partial one at its end.
	damaged bool
	newest  int64 // upper bound of its events' times, in nanoseconds; guarded by Journal.mu
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("event journal is closed")

// Open opens the journal in dir and creates it if it does not exist. It cuts
// off a partial last line that a crash left. A segment of a newer schema is an
// error that names the file.
func Open(dir string, opts Options) (*Journal, error) {
	j := &Journal{dir: dir, max: opts.MaxBytes, seen: sources{}, grown: make(chan struct{})}
	if j.max <= 0 {
		j.max = defaultMaxBytes
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open event journal: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open event journal: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(name, 10, 64); err == nil {
			j.segments = append(j.segments, &segment{number: n, path: filepath.Join(dir, e.Name())})
		}
	}
	slices.SortFunc(j.segments, func(a, b *segment) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	for _, s := range j.segments {
		if err := j.load(s); err != nil {
			return nil, fmt.Errorf("open event journal %s: %w", s.path, err)
		}
	}
	if n := len(j.segments); n > 0 {
		last := j.segments[n-1]
		if err := os.Truncate(last.path, last.size); err != nil {
			return nil, fmt.Errorf("open event journal: %w", err)
		}
		if j.file, err = os.OpenFile(last.path, os.O_WRONLY|os.O_APPEND, 0); err != nil {
			return nil, fmt.Errorf("open event journal: %w", err)
		}
	}
	if len(j.segments) == 0 || j.segments[len(j.segments)-1].size == 0 {
		if err := j.begin(); err != nil {
			return nil, fmt.Errorf("open event journal: %w", err)
		}
	}
	return j, nil
}

// load reads the sources and the size of a segment.
func (j *Journal) load(s *segment) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = scan(f, 0, func(line []byte, off int64) error {
		s.size = off + int64(len(line))
		if off == 0 {
			h, err := parseHead(line)
			s.damaged = h.Schema == 0
			j.seen.merge(h.Sources)
			return err
		}
		if source := sourceOf(line); source != "" {
			j.seen.add(source)
		}
		at := timeOf(line)
		s.damaged = s.damaged || at == unknownTime
		s.newest = max(s.newest, at)
		return nil
	})
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	s.damaged = s.damaged || st.Size() != s.size || s.size == 0
	return nil
}

// Damaged returns the paths of the segments that were damaged when the journal was
// opened. All their whole lines that are events are read all the same.
func (j *Journal) Damaged() (paths []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments {
		if s.damaged {
			paths = append(paths, s.path)
		}
	}
	return paths
}

// sourceOf returns the source of an event's line, or an empty string. Most
// lines have none, and Append writes it last. So its absence is detected
// without decoding the line: a journal may have a hundred thousand lines when
// it is opened.
func sourceOf(line []byte) string {
	const name = `,"source":`
	if rest, ok := bytes.CutSuffix(line, []byte("\"}\n")); ok && bytes.HasPrefix(rest, []byte(`{"Type":`)) {
		at := bytes.LastIndexByte(rest, '"')
		if value := rest[at+1:]; bytes.HasSuffix(rest[:at], []byte(name)) && bytes.IndexByte(value, '\\') < 0 {
			return string(value)
		}
	}
	if !bytes.Contains(line, []byte(name[1:])) {
		return ""
	}
	var m struct {
		Source string `json:"source"`
	}
	if json.Unmarshal(line, &m) != nil {
		return ""
	}
	return m.Source
}

// timeOf returns the time of an event's line in nanoseconds, without decoding
// the rest. It is unknownTime if the line has no time or is damaged. The key
// can't be found inside a string, whose quotes are escaped. An attribute of
// that name has a string as its value, and comes earlier in the line.
func timeOf(line []byte) int64 {
	const name = `"timeNano":`
	at := bytes.LastIndex(line, []byte(name))
	if at < 0 {
		return unknownTime
	}
	digits := line[at+len(name):]
	end := 0
	for end < len(digits) && digits[end] >= '0' && digits[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(string(digits[:end]), 10, 64)
	if err != nil {
		return unknownTime
	}
	return n
}

// unknownTime is the newest time of a segment whose events may have any time.
const unknownTime = math.MaxInt64

func parseHead(line []byte) (head, error) {
	// Decode the schema number first, because a newer schema may not decode at
	// all.
	var top struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(line, &top); err == nil && top.Schema > headSchema {
		return head{}, fmt.Errorf("written by a newer release: its schema is %d, this release reads up to %d", top.Schema, headSchema)
	}
	var h head
	if err := json.Unmarshal(line, &h); err != nil || h.Schema == 0 {
		// The head is damaged, but the events can be read.
		return head{}, nil
	}
	return h, nil
}

// scan calls each for every whole line from off on, including its newline. The
// line is valid until each returns.
func scan(r io.Reader, off int64, each func(line []byte, off int64) error) error {
	br := bufio.NewReaderSize(r, 32<<10)
	for {
		line, err := br.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			start := bytes.Clone(line)
			line, err = br.ReadBytes('\n')
			line = append(start, line...)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(line, off); err != nil {
			return err
		}
		off += int64(len(line))
	}
}

// begin starts a new segment, and deletes the oldest ones above the limit.
func (j *Journal) begin() error {
	number := uint64(1)
	if n := len(j.segments); n > 0 {
		number = j.segments[n-1].number + 1
	}
	s := &segment{number: number, path: filepath.Join(j.dir, fmt.Sprintf("%08d%s", number, segmentSuffix))}
	text, err := json.Marshal(head{Schema: headSchema, Sources: j.seen})
	if err != nil {
		return err
	}
	text = append(text, '\n')
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		f.Close()
		os.Remove(s.path)
		return err
	}
	s.size = int64(len(text))
	if j.file != nil {
		j.file.Close()
	}
	j.file = f
	j.segments = append(j.segments, s)

	total := int64(0)
	for _, s := range j.segments {
		total += s.size
	}
	for len(j.segments) > 1 && total > j.max {
		old := j.segments[0]
		if err := os.Remove(old.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break // the next segment tries again
		}
		total -= old.size
		j.segments = j.segments[1:]
	}
	return nil
}

// Append records m and wakes the subscribers. If an event of the same Source
// was recorded before, it records nothing and returns false. Once it has
// returned true, the event survives the death of the process (but not of the
// machine).
func (j *Journal) Append(m Message) (bool, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return false, fmt.Errorf("record event: %w", err)
	}
	text = append(text, '\n')
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return false, ErrClosed
	}
	if j.watch != nil {
		return false, nil
	}
	if m.Source != "" && j.seen.has(m.Source) {
		return false, nil
	}
	last := j.segments[len(j.segments)-1]
	if j.torn {
		if err := j.file.Truncate(last.size); err != nil {
			return false, fmt.Errorf("record event: %w", err)
		}
		j.torn = false
	}
	if last.size+int64(len(text)) > j.max/segmentsKept && last.size > j.headSize() {
		// If the disk is full, the present segment may still have room for the
		// event.
		if err := j.begin(); err == nil {
			last = j.segments[len(j.segments)-1]
		}
	}
	if _, err := j.file.Write(text); err != nil {
		j.torn = j.file.Truncate(last.size) != nil
		return false, fmt.Errorf("record event: %w", err)
	}
	last.size += int64(len(text))
	last.newest = max(last.newest, m.At().UnixNano())
	j.recent.add(m, Position{last.number, last.size}, len(text))
	if m.Source != "" {
		j.seen.add(m.Source)
	}
	close(j.grown)
	j.grown = make(chan struct{})
	return true, nil
}

// headSize is an upper bound of the size of a new segment's head, so that a
// segment with many sources still takes events.
func (j *Journal) headSize() int64 {
	n := int64(64)
	for stream, spans := range j.seen {
		n += int64(len(stream)) + 8 + 64*int64(len(spans))
	}
	return n
}

// Through returns the number up to which all entries of a stream are recorded,
// beginning with number 1; 0 if that one is not.
func (j *Journal) Through(stream string) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if spans := j.seen[stream]; len(spans) > 0 && spans[0].First <= 1 {
		return spans[0].Last
	}
	return 0
}

// Forget drops the numbers of all streams with this prefix, because the journal
// from which they come was removed and won't be read again. The events stay.
func (j *Journal) Forget(prefix string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for stream := range j.seen {
		if strings.HasPrefix(stream, prefix) {
			delete(j.seen, stream)
		}
	}
}

// Close ends the journal and all subscriptions.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	close(j.grown)
	if j.watch != nil {
		return j.watch.Close()
	}
	return j.file.Close()
}

// Position is a place in the journal, between two events.
type Position struct {
	Segment uint64 `json:"segment"` // number of the file
	Offset  int64  `json:"offset"`  // in bytes
}

// End is where the next event will be recorded.
func (j *Journal) End() Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segments) == 0 {
		return Position{}
	}
	last := j.segments[len(j.segments)-1]
	return Position{last.number, last.size}
}

// entry is an event found by a replay.
type entry struct {
	time int64
	file int // index among the open files
	off  int64
	size int32
}

// snapshot opens the segments that may have events at or after since
// (nanoseconds). It also returns the journal's end: as a place in its files,
// and as the number of the next event that Append records. If from is not nil
// the journal ends there. With noPast no segment is opened.
func (j *Journal) snapshot(from *Position, since int64, noPast bool) (files []*os.File, sizes []int64, end Position, next uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, nil, Position{}, 0, ErrClosed
	}
	last := j.segments[len(j.segments)-1]
	end, next = Position{last.number, last.size}, j.recent.next
	if from != nil {
		end = *from
	}
	if noPast {
		return nil, nil, end, next, nil
	}
	for _, s := range j.segments {
		if s.newest < since || s.number > end.Segment {
			continue
		}
		size := s.size
		if s.number == end.Segment {
			size = end.Offset
		}
		f, err := os.Open(s.path)
		if from != nil && errors.Is(err, fs.ErrNotExist) {
			continue // the oldest is deleted when the journal is full
		}
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, nil, Position{}, 0, fmt.Errorf("read event journal: %w", err)
		}
		files = append(files, f)
		sizes = append(sizes, size)
	}
	return files, sizes, end, next, nil
}

// history finds the events in [since, until] (nanoseconds; 0 is no bound) that
// match, in order of their time.
func history(files []*os.File, sizes []int64, since, until int64, match func(Message) bool) ([]entry, error) {
	var found []entry
	for i, f := range files {
		err := scan(io.NewSectionReader(f, 0, sizes[i]), 0, func(line []byte, off int64) error {
			m, ok := parse(line)
			if !ok {
				return nil
			}
			at := m.At().UnixNano()
			if since != 0 && at < since || until != 0 && at > until || match != nil && !match(m) {
				return nil
			}
			found = append(found, entry{at, i, off, int32(len(line))})
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read event journal: %w", err)
		}
	}
	sort.SliceStable(found, func(a, b int) bool { return found[a].time < found[b].time })
	return found, nil
}

// parse reads a line; false for a head or a damaged line.
func parse(line []byte) (Message, bool) {
	if bytes.HasPrefix(line, []byte(`{"schema":`)) {
		return Message{}, false
	}
	var m Message
	if json.Unmarshal(line, &m) != nil {
		return Message{}, false
	}
	return m, true
}
