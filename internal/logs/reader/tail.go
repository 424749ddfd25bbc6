// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"bytes"
	"encoding/binary"
	"io"
)

// seekTail sets the queue to begin with the last opts.Tail records. Plain files
// are read backwards, only as far as needed. Compressed ones must be read whole
// to count their records.
func (r *Reader) seekTail() error {
	need := r.opts.Tail
	i := len(r.queue)
	for i > 0 && (need > 0 || i == len(r.queue)) {
		i--
		f := r.queue[i]
		found, err := r.tailOf(f, need)
		if err != nil {
			return err
		}
		need -= found
	}
	for _, f := range r.queue[:i] {
		f.close()
	}
	r.queue = r.queue[i:]
	return nil
}

// tailOf makes f begin with its last records, at most need, and returns their
// number.
func (r *Reader) tailOf(f *file, need int) (int, error) {
	if f.zip {
		total, err := r.count(f)
		f.skip = max(total-need, 0)
		return total - f.skip, err
	}
	size, err := f.size()
	if err != nil {
		return 0, err
	}
	from, found, err := r.decode.tail(f.f, size, need)
	f.from = from
	return found, err
}

func (r *Reader) count(f *file) (int, error) {
	c, err := newCursor(f)
	if err != nil {
		return 0, err
	}
	total := 0
	for {
		if _, err = c.next(r.decode); err != nil {
			break
		}
		total++
	}
	if err != io.EOF && err != errDamaged {
		return 0, err
	}
	_, err = f.f.Seek(0, io.SeekStart)
	return total, err
}

// tail finds the offset of the last need whole lines before size. Without any
// it is the end of the last whole line.
func (*jsonDecoder) tail(f io.ReaderAt, size int64, need int) (from int64, found int, err error) {
	block := make([]byte, 64<<10)
	ends := 0 // newlines seen; the last one ends the last whole line
	for at := size; at > 0; {
		start := max(at-int64(len(block)), 0)
		p := block[:at-start]
		if _, err := f.ReadAt(p, start); err != nil && err != io.EOF {
			return 0, 0, err
		}
		for {
			i := bytes.LastIndexByte(p, '\n')
			if i < 0 {
				break
			}
			if ends++; ends > need {
				return start + int64(i) + 1, need, nil
			}
			p = p[:i]
		}
		at = start
	}
	return 0, ends, nil
}

// tail goes backwards by the length after each entry. If the last entry is not
// whole, tail finds its end by walking from the start.
func (d *localDecoder) tail(f io.ReaderAt, size int64, need int) (from int64, found int, err error) {
	_, ok, err := entryBefore(f, size)
	if err != nil {
		return 0, 0, err
	}
	at := size
	if !ok {
		if at, err = lastWhole(f, size); err != nil {
			return 0, 0, err
		}
	}
	for found < need && at > 0 {
		start, ok, err := entryBefore(f, at)
		if err != nil {
			return 0, 0, err
		}
		if !ok {
			break // the file is damaged before this: only the rest can be read
		}
		at = start
		found++
	}
	return at, found, nil
}

func entryBefore(f io.ReaderAt, end int64) (start int64, ok bool, err error) {
	n, ok, err := lengthAt(f, end-4, end)
	if err != nil || !ok {
		return 0, false, err
	}
	start = end - n - 8
	m, ok, err := lengthAt(f, start, end)
	return start, ok && m == n, err
}

func lastWhole(f io.ReaderAt, size int64) (int64, error) {
	at := int64(0)
	for {
		n, ok, err := lengthAt(f, at, size)
		if err != nil || !ok {
			return at, err
		}
		next := at + n + 8
		m, ok, err := lengthAt(f, next-4, size)
		if err != nil || !ok || m != n {
			return at, err
		}
		at = next
	}
}

// lengthAt reads the length at off. ok is false if no entry of that length fits
// before end.
func lengthAt(f io.ReaderAt, off, end int64) (n int64, ok bool, err error) {
	if off < 0 || off+4 > end {
		return 0, false, nil
	}
	var b [4]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return 0, false, err
	}
	return int64(binary.BigEndian.Uint32(b[:])), true, nil
}
