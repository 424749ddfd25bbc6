// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/log"
)

// OOMWatch counts the OOM kills of one run. The counter disappears with the cgroup,
// which systemd removes as soon as its last process has ended. Therefore it is read
// while the container runs, whenever the kernel reports a change.
//
// Source: Documentation/admin-guide/cgroup-v2.rst (inotify reports changes of
// memory.events) and cgroup-v1/memory.rst (an eventfd reports those of
// memory.oom_control).
type OOMWatch struct {
	path, key string
	f         *os.File // readable at a change; nil if changes can't be watched
	done      chan struct{}

	mu sync.Mutex
	// kills and events are the last values read: processes killed, and how often the
	// limit was hit.
	kills, events int
}

// WatchOOM starts to count at the begin of a run. Without a path it never finds
// anything.
func WatchOOM(path, key string) *OOMWatch {
	w := &OOMWatch{path: path, key: key, done: make(chan struct{})}
	if w.key == "" {
		w.key = "oom_kill"
	}
	if path == "" {
		close(w.done)
		return w
	}
	var err error
	eventIsOOM := false // every event is an OOM, not only a change
	if filepath.Base(path) == "memory.oom_control" {
		w.f, err = oomEvents(path)
		eventIsOOM = true
	} else {
		w.f, err = fileChanges(path)
	}
	if err != nil && !os.IsNotExist(err) {
		log.Printf("OOM kills can't be watched and are counted only at the end: %v", err)
	}
	w.read() // what happened before the watch
	if w.f == nil {
		close(w.done)
		return w
	}
	go func() {
		defer close(w.done)
		buf := make([]byte, 4096)
		for {
			if n, err := w.f.Read(buf); err != nil || n == 0 {
				return
			}
			// The removal of the cgroup is an event as well.
			if w.read() && eventIsOOM {
				w.mu.Lock()
				w.events++
				w.mu.Unlock()
			}
		}
	}()
	return w
}

// read updates the counters. It reports whether the file could be read.
func (w *OOMWatch) read() bool {
	b, err := os.ReadFile(w.path)
	if err != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(value)
		switch {
		case err != nil:
		case name == w.key:
			w.kills = max(w.kills, n)
		case name == "oom":
			w.events = max(w.events, n)
		}
	}
	return true
}

// End is called after the container's exit. It reports whether the kernel killed a
// process for lack of memory. The event precedes the increment of the counter. If
// the cgroup disappeared in between, killed decides: whether the container's
// process ended by SIGKILL.
func (w *OOMWatch) End(killed bool) bool {
	there := w.path != "" && w.read()
	if w.f != nil {
		w.f.Close()
	}
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kills > 0 || !there && killed && w.events > 0
}

// fileChanges returns a file that becomes readable whenever the file at path
// changes.
func fileChanges(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init", err)
	}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "inotify_add_watch", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// oomEvents returns a file that becomes readable whenever the v1 memory cgroup of
// the file at path runs out of memory.
func oomEvents(path string) (*os.File, error) {
	control, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(control)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	register, err := unix.Open(filepath.Join(filepath.Dir(path), "cgroup.event_control"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(register, []byte(strconv.Itoa(fd)+" "+strconv.Itoa(control)))
		unix.Close(register)
	}
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "watch", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), "eventfd"), nil
}
