// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"bytes"
	"io"
	"time"

	"holdfast/internal/logs/format"
)

// nearEnough is the size in bytes below which reading sequentially is cheaper
// than another step of the binary search.
const nearEnough = 64 << 10

// since is a binary search. If the clock was set back, lines are out of order.
// Then it is undefined which lines after t are found, except that those after
// the last older line always are.
func (d *jsonDecoder) since(f io.ReaderAt, size int64, t time.Time) (int64, error) {
	// All records before from are older than t. None that begins at or after to
	// is older.
	from, to := int64(0), size
	for to-from > nearEnough {
		middle := from + (to-from)/2
		start, record, err := recordAfter(f, middle, to)
		if err != nil {
			return 0, err
		}
		if record == nil {
			to = middle // from middle on there is at most a part of one record
			continue
		}
		line, ok := d.Decode(record)
		switch {
		case !ok:
			return from, nil // damaged: read sequentially from here
		case line.Time.Before(t):
			from = start
		default:
			to = middle
		}
	}
	return from, nil
}

// recordAfter finds the first whole record that begins after at and before end.
// Without one record is nil.
func recordAfter(f io.ReaderAt, at, end int64) (start int64, record []byte, err error) {
	buf := make([]byte, 0, bufferSize)
	first := -1 // where in buf the record begins
	for {
		if at+int64(len(buf)) >= end || len(buf) > format.RecordLimit {
			return 0, nil, nil
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		room := buf[len(buf):cap(buf)]
		room = room[:min(int64(len(room)), end-at-int64(len(buf)))]
		n, err := f.ReadAt(room, at+int64(len(buf)))
		if err != nil && err != io.EOF {
			return 0, nil, err
		}
		if n == 0 {
			return 0, nil, nil // the file was truncated meanwhile
		}
		buf = buf[:len(buf)+n]
		if first < 0 {
			first = bytes.IndexByte(buf, '\n') + 1
			if first == 0 {
				first = -1
				continue
			}
		}
		if n := bytes.IndexByte(buf[first:], '\n'); n >= 0 {
			return at + int64(first), buf[first : first+n+1], nil
		}
	}
}

// since returns the beginning, because entries can't be found from within a
// file. Local logs have small files, and many.
func (*localDecoder) since(io.ReaderAt, int64, time.Time) (int64, error) { return 0, nil }
