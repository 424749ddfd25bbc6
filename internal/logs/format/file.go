// SPDX-License-Identifier: Apache-2.0

package format

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// writeOut writes the buffer to the file. If the disk is full, whole records
// are dropped: a partly written one is cut off again.
func (l *Log) writeOut() {
	if l.n == 0 {
		return
	}
	if l.n > l.high {
		l.high = l.n
	}
	p := l.buf[:l.n]
	l.n = 0
	if l.torn && !l.mend() {
		l.dropped += l.records(p)
		return
	}
	done := 0
	for done < len(p) {
		n, err := syscall.Write(l.fd, p[done:])
		if n > 0 {
			done += n
			l.size += int64(n)
			continue
		}
		if err == syscall.EINTR {
			continue
		}
		whole := l.boundary(p, done)
		l.dropped += l.records(p[whole:])
		if whole < done {
			l.torn = true
			l.mend()
		}
		return
	}
}

// mend cuts off the partial record at the end of the file. If that fails it is
// tried again before the next write.
func (l *Log) mend() bool {
	size, err := l.repair(l.fd)
	if err != nil {
		return false
	}
	l.size, l.torn = size, false
	return true
}

// boundary returns the end of the last whole record within the first n bytes of
// p.
func (l *Log) boundary(p []byte, n int) int {
	if l.cfg.Driver == DriverJSON {
		return bytes.LastIndexByte(p[:n], '\n') + 1
	}
	end := 0
	for end+4 <= n {
		next := end + int(length(p[end:])) + 8
		if next > n {
			break
		}
		end = next
	}
	return end
}

// records counts the records in p, which must be whole.
func (l *Log) records(p []byte) uint64 {
	if l.cfg.Driver == DriverJSON {
		return uint64(bytes.Count(p, []byte{'\n'}))
	}
	var n uint64
	for len(p) >= 8 {
		p = p[length(p)+8:]
		n++
	}
	return n
}

// repair cuts the file to its last whole record and returns its size.
func (l *Log) repair(fd int) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return 0, err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Size == 0 {
		return 0, nil
	}
	end, err := lastNewline, error(nil)
	if l.cfg.Driver == DriverLocal {
		end = lastEntry
	}
	whole, err := end(fd, st.Size)
	if err != nil || whole == st.Size {
		return whole, err
	}
	return whole, syscall.Ftruncate(fd, whole)
}

// lastNewline returns the offset after the last newline.
func lastNewline(fd int, size int64) (int64, error) {
	var block [4096]byte
	for at := size; at > 0; {
		from := max(at-int64(len(block)), 0)
		p := block[:at-from]
		if err := readAt(fd, p, from); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(p, '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		at = from
	}
	return 0, nil
}

// lastEntry returns the offset after the last whole entry of the local format.
// That is the end of the file if the last entry's two lengths agree. Otherwise
// lastEntry walks from the start.
func lastEntry(fd int, size int64) (int64, error) {
	var b [4]byte
	if size >= 8 {
		if err := readAt(fd, b[:], size-4); err != nil {
			return 0, err
		}
		if n := int64(length(b[:])); n+8 <= size {
			if err := readAt(fd, b[:], size-n-8); err != nil {
				return 0, err
			}
			if int64(length(b[:])) == n {
				return size, nil
			}
		}
	}
	end := int64(0)
	for end+8 <= size {
		if err := readAt(fd, b[:], end); err != nil {
			return 0, err
		}
		next := end + int64(length(b[:])) + 8
		if next > size {
			break
		}
		if err := readAt(fd, b[:], next-4); err != nil {
			return 0, err
		}
		if int64(length(b[:])) != next-end-8 {
			break
		}
		end = next
	}
	return end, nil
}

func readAt(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := syscall.Pread(fd, p, off)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return syscall.EIO // the file was truncated meanwhile
		}
		p = p[n:]
		off += int64(n)
	}
	return nil
}

// rotated returns the name of the i-th rotated file, counted from 1.
func (l *Log) rotated(i int) string { return l.cfg.Path + "." + strconv.Itoa(i) }

func exists(path string) bool {
	var st syscall.Stat_t
	return syscall.Lstat(path, &st) == nil
}

func (l *Log) taken(i int) bool {
	return exists(l.rotated(i)) || exists(l.rotated(i)+".gz")
}

// rotate renames the active file to path.1 and begins a new one. If that fails,
// the active file stays and grows until the next try, so no line is lost.
func (l *Log) rotate() {
	fd, err := l.swap()
	if err != nil {
		l.retryAt = l.size + max(l.cfg.MaxSize/8, 64<<10)
		return
	}
	syscall.Close(l.fd)
	l.fd, l.size, l.retryAt, l.inode = fd, 0, 0, 0
	if l.turned != nil {
		l.turned(fd)
	}
	if l.cfg.Compress && l.cfg.MaxFiles > 1 {
		l.zip.lastTime = l.last
		l.startZip()
	}
}

// OnTurn registers fn, which is called at each rotation with the descriptor of
// the new active file, before anything is written to it. fn must not call the
// Log, and must duplicate the descriptor if it keeps it.
func (l *Log) OnTurn(fn func(fd int)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turned = fn
}

// swap renames the files. It first creates the next active file, because that
// step fails on a full disk. The file gets its name by a rename, so each name
// always refers to a complete file.
func (l *Log) swap() (fd int, err error) {
	next := l.cfg.Path + ".tmp"
	fd, err = open(next, syscall.O_RDWR|syscall.O_APPEND|syscall.O_CREAT|syscall.O_TRUNC)
	if err != nil {
		return -1, err
	}
	undo := func() {
		syscall.Close(fd)
		syscall.Unlink(next)
	}
	if l.cfg.MaxFiles > 1 {
		if err := l.shift(); err != nil {
			undo()
			return -1, err
		}
		if err := syscall.Rename(l.cfg.Path, l.rotated(1)); err != nil && err != syscall.ENOENT {
			undo()
			return -1, err
		}
	}
	// With a single file the old one loses its name here. A reader that has it
	// open can still read it to its end.
	if err := syscall.Rename(next, l.cfg.Path); err != nil {
		syscall.Rename(l.rotated(1), l.cfg.Path)
		undo()
		return -1, err
	}
	return fd, nil
}

// shift renames the rotated files so that path.1 is free. Only the files up to
// the first gap move, and the oldest is removed only if there is no gap.
func (l *Log) shift() error {
	free := 1
	for free < l.cfg.MaxFiles && l.taken(free) {
		free++
	}
	if free == l.cfg.MaxFiles {
		free--
		for _, name := range []string{l.rotated(free), l.rotated(free) + ".gz"} {
			if err := syscall.Unlink(name); err != nil && err != syscall.ENOENT {
				return err
			}
		}
		l.zip.gone(free)
	}
	for i := free - 1; i >= 1; i-- {
		for _, ext := range []string{"", ".gz"} {
			if err := syscall.Rename(l.rotated(i)+ext, l.rotated(i+1)+ext); err != nil && err != syscall.ENOENT {
				return err
			}
		}
		l.zip.moved(i)
	}
	return nil
}

// settle completes a rotation or compression that a crash interrupted.
func (l *Log) settle() {
	syscall.Unlink(l.cfg.Path + ".tmp")
	syscall.Unlink(l.zipTemp())
	waiting := false
	for i := 1; i < l.cfg.MaxFiles; i++ {
		plain := l.rotated(i)
		st, err := os.Stat(plain)
		if err != nil {
			continue
		}
		if extra, err := ReadExtra(plain + ".gz"); err == nil && extra.Same(st) {
			syscall.Unlink(plain)
			continue
		}
		waiting = true
	}
	if waiting && l.cfg.Compress {
		l.mu.Lock()
		l.startZip()
		l.mu.Unlock()
	}
}
