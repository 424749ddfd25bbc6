// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/logs/format"
)

// file is one open file of a log. As it is open, it stays readable and its
// inode is not reused, whatever rotation does.
type file struct {
	name  string
	f     *os.File
	zip   bool
	stat  fs.FileInfo // when it was opened
	extra format.Extra

	bounded bool
	limit   int64 // bytes to read, if bounded
	from    int64 // offset to begin at, of a plain file
	skip    int   // records to leave out, of a compressed file
}

func (f *file) close() { f.f.Close() }

// size returns how many bytes of a plain file may be read at the moment.
func (f *file) size() (int64, error) {
	if f.bounded {
		return f.limit, nil
	}
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// last returns a time such that no line of the file is later. It is known only
// for rotated files.
func (f *file) last() time.Time {
	if f.zip && !f.extra.LastTime.IsZero() {
		return f.extra.LastTime
	}
	return f.stat.ModTime()
}

// same reports whether f and g hold the same lines: they are one file, or one
// is the compressed form of the other.
func (f *file) same(g *file) bool {
	switch {
	case f.zip == g.zip:
		return os.SameFile(f.stat, g.stat)
	case g.zip:
		f, g = g, f
	}
	// g is plain. Only its final size and time match those in the header of f.
	st, err := g.f.Stat()
	return err == nil && f.extra.Same(st)
}

// isAt reports whether path is the file f.
func (f *file) isAt(path string) (bool, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(st, f.stat), err
}

func open(name string, zip bool) (*file, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	out := &file{name: name, f: f, zip: zip, stat: st}
	if zip {
		// A file of another writer has none, which is fine.
		out.extra, _ = format.ReadExtraFrom(f)
	}
	return out, nil
}

// list opens all files of a log, oldest first. If the log is rotated meanwhile,
// it starts again: if the active file is the same before and after, the files
// are in order.
func list(path string) ([]*file, error) {
	const tries = 100 // give up if the writer rotates faster than this
	for try := 1; ; try++ {
		files, err := listOnce(path)
		if err != nil {
			return nil, err
		}
		if try == tries {
			return files, nil
		}
		var stable bool
		if n := len(files); n > 0 && files[n-1].name == path {
			stable, err = files[n-1].isAt(path)
		} else {
			// There was no active file. Check that there is still none.
			_, serr := os.Stat(path)
			stable = errors.Is(serr, fs.ErrNotExist)
		}
		if stable && err == nil {
			return files, nil
		}
		for _, f := range files {
			f.close()
		}
		if err != nil {
			return nil, err
		}
	}
}

// listOnce opens the files from the newest to the oldest. A file only ever
// moves to a higher number and from plain to compressed, so each is found at
// least once.
func listOnce(path string) ([]*file, error) {
	highest, err := highestNumber(path)
	if err != nil {
		return nil, err
	}
	var files []*file // newest first
	// Look at two more numbers, for files that are renamed while the others are
	// opened.
	for i := 0; i <= highest+2; i++ {
		name := path
		if i > 0 {
			name += "." + strconv.Itoa(i)
		}
		f, err := open(name, false)
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			f, err = open(name+".gz", true)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			for _, f := range files {
				f.close()
			}
			return nil, err
		}
		if n := len(files); n > 0 && f.same(files[n-1]) {
			f.close()
			continue
		}
		files = append(files, f)
		highest = max(highest, i)
	}
	slices.Reverse(files)
	return files, nil
}

func highestNumber(path string) (int, error) {
	names, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	highest := 0
	for _, e := range names {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if !ok {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSuffix(rest, ".gz")); err == nil {
			highest = max(highest, n)
		}
	}
	return highest, err
}

// bufferSize is the initial size of a cursor's buffer, in bytes. It is freed
// while the reader waits.
const bufferSize = 64 << 10

var errDamaged = format.ErrDamaged

// cursor reads the records of one file.
type cursor struct {
	f     *file
	in    io.Reader // of a compressed file
	final bool      // nothing more is written to it
	buf   []byte    // buf[at:end] is read but not returned yet
	at    int
	end   int
	off   int64 // of buf[end] in a plain file
}

func newCursor(f *file) (*cursor, error) {
	c := &cursor{f: f, off: f.from, final: f.zip}
	if f.zip {
		z, err := gzip.NewReader(bufio.NewReader(f.f))
		if err != nil {
			return nil, err
		}
		c.in = z
	}
	return c, nil
}

func (c *cursor) close() { c.f.close() }

// next returns the next whole record, valid until the next call. io.EOF means
// that there is none yet. A partial record at the end is read again later.
func (c *cursor) next(d decoder) ([]byte, error) {
	if err := c.more(d); err != nil {
		return nil, err
	}
	return c.buffered(d)
}

// more reads until there is a whole record in the buffer.
func (c *cursor) more(d decoder) error {
	for {
		if n, err := d.Record(c.buf[c.at:c.end]); n > 0 || err != nil {
			return err
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
}

// buffered returns the next whole record of those in the buffer, or nil.
func (c *cursor) buffered(d decoder) ([]byte, error) {
	n, err := d.Record(c.buf[c.at:c.end])
	if n == 0 || err != nil {
		return nil, err
	}
	record := c.buf[c.at : c.at+n]
	c.at += n
	return record, nil
}

func (c *cursor) fill() error {
	if c.at > 0 {
		c.end = copy(c.buf, c.buf[c.at:c.end])
		c.at = 0
	}
	if c.end == len(c.buf) {
		if c.end >= format.RecordLimit {
			return errDamaged
		}
		bigger := make([]byte, max(bufferSize, 2*len(c.buf)))
		copy(bigger, c.buf)
		c.buf = bigger
	}
	room := c.buf[c.end:]
	var n int
	var err error
	if c.in != nil {
		n, err = c.in.Read(room)
	} else {
		if c.f.bounded {
			room = room[:min(int64(len(room)), max(c.f.limit-c.off, 0))]
			if len(room) == 0 {
				return io.EOF
			}
		}
		n, err = c.f.f.ReadAt(room, c.off)
	}
	c.end += n
	c.off += int64(n)
	if n > 0 {
		return nil
	}
	if err == io.ErrUnexpectedEOF {
		return errDamaged
	}
	if err == nil {
		err = io.EOF
	}
	return err
}

// rest prepares for a wait. It frees the buffer, and forgets a partial record
// at the end, because its writer may die and the next one cuts it off. A file
// that is shorter than the bytes read was truncated by someone; it is read from
// its beginning.
func (c *cursor) rest() {
	if c.in != nil {
		return
	}
	c.off -= int64(c.end - c.at)
	c.buf, c.at, c.end = nil, 0, 0
	if st, err := c.f.f.Stat(); err == nil && st.Size() < c.off {
		c.off = 0
	}
}
