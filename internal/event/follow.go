package event

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Follow gives the journal up to another process: from now on this one only
// reads. Append records nothing and reports false; subscriptions go on with
// what the other process appends. Close ends it as it ends a journal that is
// written to.
func (j *Journal) Follow() error {
	// The file is made blocking or not by its flags, so that a read that waits
	// ends when the file is closed.
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("follow event journal: %w", os.NewSyscallError("inotify_init1", err))
	}
	watch := os.NewFile(uintptr(fd), "watch of "+j.dir)
	if _, err := syscall.InotifyAddWatch(fd, j.dir, syscall.IN_MODIFY|syscall.IN_CREATE|syscall.IN_DELETE); err != nil {
		watch.Close()
		return fmt.Errorf("follow event journal: %w", os.NewSyscallError("inotify_add_watch", err))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || j.watch != nil {
		watch.Close()
		if j.closed {
			return ErrClosed
		}
		return nil
	}
	j.watch = watch
	j.file.Close()
	go func() {
		// What happened is looked up, so that events of it that were lost or
		// joined are of no account.
		events := make([]byte, 16<<10)
		for {
			if _, err := watch.Read(events); err != nil {
				return
			}
			j.mu.Lock()
			if !j.closed {
				j.lookAgain()
			}
			j.mu.Unlock()
		}
	}()
	return nil
}

// lookAgain finds what another process has appended. What can't be read now is
// found the next time.
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
			if last := j.segments[len(j.segments)-1].number; n < last {
				continue // deleted, and listed before it was
			}
			j.segments = append(j.segments, &segment{number: n, path: filepath.Join(j.dir, e.Name())})
			i, grew = len(j.segments)-1, true
		}
		s := j.segments[i]
		if size := wholeLines(s.path, s.size); size > s.size {
			s.size, grew = size, true
		}
	}
	last := j.segments[len(j.segments)-1]
	j.segments = slices.DeleteFunc(j.segments, func(s *segment) bool { return s != last && !slices.Contains(there, s.number) })
	if grew {
		close(j.grown)
		j.grown = make(chan struct{})
	}
}

// wholeLines is where the last whole line ends in what a file has from off on.
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
