// SPDX-License-Identifier: Apache-2.0

package event

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Look finds the events that another process has appended, without waiting for
// the watch.
func (j *Journal) Look() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		j.lookAgain()
	}
}

// lookAgain finds the events that another process has appended. Files that
// can't be read are tried again the next time.
func (j *Journal) lookAgain() {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return
	}
	grew := false
	var there []uint64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(name, 10, 64)
		if err != nil {
			continue
		}
		there = append(there, n)
		i := slices.IndexFunc(j.segments, func(s *segment) bool { return s.number == n })
		if i < 0 {
			if len(j.segments) > 0 && n < j.segments[len(j.segments)-1].number {
				continue // it was listed, but has been deleted since
			}
			j.segments = append(j.segments, &segment{number: n, path: filepath.Join(j.dir, e.Name())})
			i, grew = len(j.segments)-1, true
		}
		s := j.segments[i]
		if size := wholeLines(s.path, s.size); size > s.size {
			s.size, s.newest, grew = size, unknownTime, true
		}
	}
	if len(j.segments) == 0 {
		return
	}
	last := j.segments[len(j.segments)-1]
	j.segments = slices.DeleteFunc(j.segments, func(s *segment) bool { return s != last && !slices.Contains(there, s.number) })
	if grew {
		close(j.grown)
		j.grown = make(chan struct{})
	}
}

// wholeLines returns the end of the last whole line of a file, reading from
// off.
func wholeLines(path string, off int64) int64 {
	f, err := os.Open(path)
	if err != nil {
		return off
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	end := off
	for {
		n, err := f.ReadAt(b, off)
		if i := bytes.LastIndexByte(b[:n], '\n'); i >= 0 {
			end = off + int64(i) + 1
		}
		off += int64(n)
		if err == io.EOF || err != nil {
			return end
		}
	}
}
