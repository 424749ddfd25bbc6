// SPDX-License-Identifier: Apache-2.0

package format

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// zipper compresses rotated files one after the other in the background. It
// runs only while there are files to compress. It is guarded by Log.mu, except
// for done.
type zipper struct {
	running  bool
	closing  bool
	index    int       // number of the file being compressed; 0 for none
	lastTime time.Time // of the last line in path.1
	done     sync.WaitGroup
}

// moved records that a rotation has renamed the i-th file. If it is being
// compressed, its number changes.
func (z *zipper) moved(i int) {
	if z.index == i {
		z.index = i + 1
	}
}

// gone records that the i-th file was removed.
func (z *zipper) gone(i int) {
	if z.index == i {
		z.index = 0
	}
}

func (l *Log) zipTemp() string { return l.cfg.Path + ".gz.tmp" }

// startZip starts the compression. Log.mu is held.
func (l *Log) startZip() {
	if l.zip.running || l.zip.closing {
		return
	}
	l.zip.running = true
	l.zip.done.Add(1)
	go func() {
		defer l.zip.done.Done()
		for l.zipNext() {
		}
		// Give back the compressor's tables, which are larger than all other
		// memory of this process.
		debug.FreeOSMemory()
	}()
}

// zipNext compresses the oldest file that is not compressed yet, and reports
// whether to continue.
func (l *Log) zipNext() bool {
	l.mu.Lock()
	var in *os.File
	index := 0
	if !l.zip.closing {
		for i := l.cfg.MaxFiles - 1; i >= 1 && in == nil; i-- {
			if f, err := os.Open(l.rotated(i)); err == nil {
				in, index = f, i
			}
		}
	}
	if in == nil {
		l.zip.running = false
		l.mu.Unlock()
		return false
	}
	l.zip.index = index
	var last time.Time
	if index == 1 {
		last = l.zip.lastTime
	}
	l.mu.Unlock()
	defer in.Close()

	err := l.compress(in, last)

	l.mu.Lock()
	defer l.mu.Unlock()
	index, l.zip.index = l.zip.index, 0
	if err == nil && index > 0 {
		// After a crash from here on both files exist. settle recognises that
		// they are the same.
		if err = os.Rename(l.zipTemp(), l.rotated(index)+".gz"); err == nil {
			err = os.Remove(l.rotated(index))
		}
	}
	if err != nil || index == 0 {
		os.Remove(l.zipTemp())
	}
	if err != nil {
		// Probably the disk is full. The next rotation tries again.
		l.zip.running = false
		return false
	}
	return true
}

// compress writes the compressed form of in to the temporary file.
func (l *Log) compress(in *os.File, last time.Time) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(l.zipTemp(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer out.Close()
	TakeGroup(int(out.Fd()), l.cfg.Path)
	w, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if last.IsZero() {
		last = st.ModTime()
	}
	w.Extra = newExtra(st, last).append(nil)
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	// The plain file is removed after this, so the compressed one must be on
	// the disk.
	return out.Sync()
}

// Extra is the description in the gzip header of a compressed log: a JSON
// object with Docker's lastTime, and the identity of the file from which it was
// made.
type Extra struct {
	LastTime time.Time // time of the last line
	Inode    uint64
	ModTime  int64 // nanoseconds since 1970
	Size     int64 // bytes, uncompressed
}

func newExtra(st os.FileInfo, last time.Time) Extra {
	x := Extra{LastTime: last, ModTime: st.ModTime().UnixNano(), Size: st.Size()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		x.Inode = sys.Ino
	}
	return x
}

// Same reports whether the compressed file was made from the file st. The log's
// active file never matches.
func (x Extra) Same(st os.FileInfo) bool {
	y := newExtra(st, x.LastTime)
	return x.Inode != 0 && x == y
}

func (x Extra) append(b []byte) []byte {
	b = append(b, `{"lastTime":"`...)
	b = x.LastTime.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","inode":`...)
	b = strconv.AppendUint(b, x.Inode, 10)
	b = append(b, `,"mtime":`...)
	b = strconv.AppendInt(b, x.ModTime, 10)
	b = append(b, `,"size":`...)
	b = strconv.AppendInt(b, x.Size, 10)
	return append(b, '}')
}

var errNoExtra = errors.New("not a gzip file with an extra field")

// ReadExtra reads the Extra of the compressed log at path. Fields that its
// writer (such as Docker) did not set are zero.
func ReadExtra(path string) (Extra, error) {
	f, err := os.Open(path)
	if err != nil {
		return Extra{}, err
	}
	defer f.Close()
	return ReadExtraFrom(f)
}

// ReadExtraFrom is ReadExtra for an open file. It does not change the offset.
func ReadExtraFrom(f io.ReaderAt) (Extra, error) {
	// RFC 1952, section 2.3: ID1 ID2 CM FLG MTIME(4) XFL OS XLEN(2) extra.
	var head [12]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return Extra{}, errNoExtra
	}
	const fExtra = 4
	if head[0] != 0x1f || head[1] != 0x8b || head[3]&fExtra == 0 {
		return Extra{}, errNoExtra
	}
	b := make([]byte, int(head[10])|int(head[11])<<8)
	if _, err := f.ReadAt(b, int64(len(head))); err != nil {
		return Extra{}, errNoExtra
	}
	var x Extra
	text := string(b)
	if v := field(text, `"lastTime":"`); v != "" {
		x.LastTime, _ = time.Parse(time.RFC3339Nano, v)
	}
	x.Inode, _ = strconv.ParseUint(field(text, `"inode":`), 10, 64)
	x.ModTime, _ = strconv.ParseInt(field(text, `"mtime":`), 10, 64)
	x.Size, _ = strconv.ParseInt(field(text, `"size":`), 10, 64)
	return x, nil
}

// field extracts a value from the flat JSON object text.
func field(text, key string) string {
	_, after, ok := strings.Cut(text, key)
	if !ok {
		return ""
	}
	if end := strings.IndexAny(after, `",}`); end >= 0 {
		return after[:end]
	}
	return ""
}
