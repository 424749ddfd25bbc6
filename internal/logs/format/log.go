// SPDX-License-Identifier: Apache-2.0

package format

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"
)

// Names of drivers.
const (
	DriverJSON  = "json-file"
	DriverLocal = "local"
	DriverNone  = "none"
)

// Defaults of the local driver, which are Docker's.
const (
	LocalMaxSize  = 20 << 20 // bytes
	LocalMaxFiles = 5
)

// MaxLine is the length in bytes above which a line is split into parts, as in
// Docker. A part may be up to three bytes shorter, so that it does not end
// inside of a UTF-8 sequence.
const MaxLine = 16 << 10

// bufSize is the size of a Log's write buffer in bytes. It holds the records of
// 256 KiB of short lines. The buffer is mapped, not allocated, so a container
// that writes little uses one page of it.
const bufSize = 512 << 10

// Config is where and how a log is written.
type Config struct {
	Driver string // json-file, local or none; empty is json-file
	Path   string
	// MaxSize is in bytes. 0 means no limit for json-file, and LocalMaxSize for
	// local. Negative means no limit for both.
	MaxSize int64
	// MaxFiles includes the active file. 0 means 1 for json-file, and
	// LocalMaxFiles for local.
	MaxFiles int
	Compress bool              // rotated files, with gzip
	Attrs    map[string]string // json-file only: labels, env and tag
}

// Source is the stream from which a line came.
type Source byte

// The two streams of a container.
const (
	Stdout Source = 1
	Stderr Source = 2
)

var names = [...]string{Stdout: "stdout", Stderr: "stderr"}

// stream is the state of one source between two writes.
type stream struct {
	held []byte // a line without its newline yet, at most MaxLine
	// State of a split line, whose parts share time and ID.
	split   bool
	at      time.Time
	id      [64]byte
	ordinal int
	suffix  []byte // json-file: what follows the line's text, including the time
}

// Log is an open log. Its methods may be called by several goroutines. Lines of
// one Source keep their order.
type Log struct {
	mu      sync.Mutex
	cfg     Config
	fd      int // of the active file; -1 after Close and for driver none
	size    int64
	last    time.Time // of the last line
	torn    bool      // the file ends with a partial record that could not be cut off yet
	retryAt int64     // size below which a failed rotation is not tried again
	inode   uint64    // of the active file; 0 until Position reads it
	turned  func(fd int)
	skip    int64 // bytes of records to leave out, see Redo

	buf  []byte // mapped
	n    int    // bytes of buf in use
	high int    // highest n since the pages were given back

	streams [3]stream
	attrs   []byte // `"attrs":{…},` or empty
	dropped uint64

	zip zipper
}

var errClosed = errors.New("log is closed")

// Open opens the log at cfg.Path and continues at its end. First it repairs
// what a crash left: it cuts off a partial last line, and completes an
// unfinished rotation or compression. Errors are of os and carry the path.
func Open(cfg Config) (*Log, error) {
	l := &Log{cfg: cfg, fd: -1}
	switch cfg.Driver {
	case DriverNone:
		return l, nil
	case "", DriverJSON:
		l.cfg.Driver = DriverJSON
		l.attrs = appendAttrs(nil, cfg.Attrs)
	case DriverLocal:
		if cfg.MaxSize == 0 {
			l.cfg.MaxSize = LocalMaxSize
		}
		if cfg.MaxFiles == 0 {
			l.cfg.MaxFiles = LocalMaxFiles
		}
		if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o750); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("unknown log driver: " + cfg.Driver)
	}
	if l.cfg.MaxFiles < 1 {
		l.cfg.MaxFiles = 1
	}
	if err := l.openActive(); err != nil {
		return nil, err
	}
	size := bufSize
	if more := len(l.attrs) + 7*MaxLine; more > size {
		size = more
	}
	buf, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		syscall.Close(l.fd)
		return nil, &os.PathError{Op: "map buffer for log", Path: cfg.Path, Err: err}
	}
	l.buf = buf
	l.settle()
	return l, nil
}

// openActive opens the active file at its last whole record.
func (l *Log) openActive() error {
	fd, err := open(l.cfg.Path, syscall.O_RDWR|syscall.O_APPEND|syscall.O_CREAT)
	if err != nil {
		return &os.PathError{Op: "open log", Path: l.cfg.Path, Err: err}
	}
	size, err := l.repair(fd)
	if err != nil {
		syscall.Close(fd)
		return &os.PathError{Op: "repair log", Path: l.cfg.Path, Err: err}
	}
	l.fd, l.size = fd, size
	return nil
}

// Write writes output of src. When it returns, whole lines are in the file; a
// line without its newline is held until the newline comes or MaxLine is
// reached. now is the time of every line that ends in p. Write never fails: see
// Dropped.
func (l *Log) Write(src Source, now time.Time, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 || len(p) == 0 || src > Stderr {
		return
	}
	s := &l.streams[src]
	l.stamp(s, src, now)
	for len(p) > 0 {
		if len(s.held) > 0 {
			p = l.join(s, src, now, p)
			continue
		}
		window := p
		if len(window) > MaxLine {
			window = window[:MaxLine]
		}
		if end := bytes.IndexByte(window, '\n'); end >= 0 {
			l.line(s, src, now, p[:end], true)
			p = p[end+1:]
			continue
		}
		if len(window) == MaxLine {
			cut := runeCut(window)
			l.line(s, src, now, p[:cut], false)
			p = p[cut:]
			continue
		}
		s.held = append(s.held, p...)
		break
	}
	l.writeOut()
	l.skip = 0
}

// join adds the beginning of p to the held line and returns the rest.
func (l *Log) join(s *stream, src Source, now time.Time, p []byte) []byte {
	room := MaxLine - len(s.held)
	window := p
	if len(window) > room {
		window = window[:room]
	}
	end := bytes.IndexByte(window, '\n')
	if end >= 0 {
		s.held = append(s.held, window[:end]...)
		l.line(s, src, now, s.held, true)
		s.held = s.held[:0]
		return p[end+1:]
	}
	s.held = append(s.held, window...)
	if len(s.held) == MaxLine {
		cut := runeCut(s.held)
		l.line(s, src, now, s.held[:cut], false)
		s.held = s.held[:copy(s.held, s.held[cut:])]
	}
	return p[len(window):]
}

// runeCut returns the length of the longest prefix of a full part that does not
// end inside of a UTF-8 sequence. In JSON a sequence split into two parts would
// become two replacement characters.
func runeCut(p []byte) int {
	for k := 1; k < utf8.UTFMax && k < len(p); k++ {
		if tail := p[len(p)-k:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return len(p) - k
			}
			break
		}
	}
	return len(p)
}

// End ends src. A last line without newline is written as it is.
func (l *Log) End(src Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 || src > Stderr {
		return
	}
	l.end(src)
}

func (l *Log) end(src Source) {
	s := &l.streams[src]
	if len(s.held) > 0 {
		now := time.Now()
		l.stamp(s, src, now)
		l.line(s, src, now, s.held, false)
		l.writeOut()
	}
	*s = stream{}
}

// Flush frees the memory that a burst of output used. Call it when the
// container has been quiet; all output is in the file already.
func (l *Log) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writeOut()
	page := os.Getpagesize()
	if l.high > page {
		// When the pages are used again the kernel fills them with zeros.
		syscall.Madvise(l.buf, syscall.MADV_DONTNEED)
		l.high = 0
	}
	for i := range l.streams {
		if s := &l.streams[i]; len(s.held) == 0 {
			s.held = nil
		}
	}
}

// Dropped is the number of lines (or parts of split lines) that did not fit on
// the disk.
func (l *Log) Dropped() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// Close ends both streams and waits until a compression in progress is done.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.fd < 0 {
		closed := l.cfg.Driver != DriverNone
		l.mu.Unlock()
		if closed {
			return errClosed
		}
		return nil
	}
	l.end(Stdout)
	l.end(Stderr)
	if l.torn {
		l.mend()
	}
	err := syscall.Close(l.fd)
	l.fd = -1
	syscall.Munmap(l.buf)
	l.buf = nil
	l.zip.closing = true
	l.mu.Unlock()
	l.zip.done.Wait()
	if err != nil {
		return &os.PathError{Op: "close log", Path: l.cfg.Path, Err: err}
	}
	return nil
}

// stamp prepares the parts of a record that depend on the time of this write.
func (l *Log) stamp(s *stream, src Source, now time.Time) {
	l.last = now
	if l.cfg.Driver == DriverJSON && !s.split {
		s.suffix = l.appendSuffix(s.suffix[:0], src, now)
	}
}

// line appends one line, or a part of one if last is false, to the buffer. It
// rotates if the file would exceed its limit.
func (l *Log) line(s *stream, src Source, now time.Time, p []byte, last bool) {
	if !last && !s.split {
		s.split, s.at, s.ordinal = true, now, 0
		if l.cfg.Driver == DriverLocal {
			for i := 0; i < len(s.id); i += 16 {
				appendHex(s.id[i:i:i+16], rand.Uint64())
			}
		}
	}
	s.ordinal++

	start := l.n
	if l.cfg.Driver == DriverJSON {
		// In the worst case each byte of the line becomes six.
		if l.n+6*len(p)+len(s.suffix)+32 > len(l.buf) {
			l.writeOut()
			start = 0
		}
		l.n = encodeJSON(l.buf, l.n, p, last, s.suffix)
	} else {
		if l.n+len(p)+256 > len(l.buf) {
			l.writeOut()
			start = 0
		}
		at := now
		if s.split {
			at = s.at
		}
		l.n = encodeLocal(l.buf, l.n, src, at, p, s, last)
	}
	written := l.skip > 0 && l.done(l.n-start)
	if written {
		l.n = start
	}
	if last && s.split {
		s.split = false
		// The following lines of the same write have their own time.
		l.stamp(s, src, now)
	}
	if !written && l.cfg.MaxSize > 0 && l.size+int64(l.n) > l.cfg.MaxSize && l.size+int64(start) > l.retryAt {
		l.turn(start)
	}
}

// turn writes the buffer up to start, rotates, and keeps the rest for the new
// file.
func (l *Log) turn(start int) {
	rest := l.n - start
	if l.n > l.high {
		l.high = l.n
	}
	l.n = start
	l.writeOut()
	if l.size > 0 && !l.torn {
		l.rotate()
	}
	l.n = copy(l.buf, l.buf[start:start+rest])
}

func open(path string, flags int) (int, error) {
	for {
		fd, err := syscall.Open(path, flags|syscall.O_CLOEXEC, 0o640)
		if err == nil && flags&syscall.O_CREAT != 0 {
			TakeGroup(fd, path)
		}
		if err != syscall.EINTR {
			return fd, err
		}
	}
}

// TakeGroup gives an open file the group of its directory, so that users with
// access to the directory can read the file. If that fails only root can.
func TakeGroup(fd int, path string) {
	var dir syscall.Stat_t
	if err := syscall.Stat(filepath.Dir(path), &dir); err == nil && dir.Gid != 0 {
		_ = syscall.Fchown(fd, -1, int(dir.Gid))
	}
}
