// SPDX-License-Identifier: Apache-2.0

package event

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Follow hands the journal over to another process. From now on this process
// only reads it: Append records nothing and returns false, and subscriptions
// continue with the events that the other process appends. Close still ends it.
func (j *Journal) Follow() error {
	// With a non-blocking descriptor os.File uses the poller, so that Close
	// ends a pending read.
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("follow event journal: %w", os.NewSyscallError("inotify_init1", err))
	}
	watch := os.NewFile(uintptr(fd), "watch of "+j.dir)
	if _, err := syscall.InotifyAddWatch(fd, j.dir, syscall.IN_MODIFY|syscall.IN_CREATE|syscall.IN_DELETE|syscall.IN_MOVED_TO|syscall.IN_DELETE_SELF); err != nil {
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
	if j.file != nil {
		j.file.Close()
	}
	j.recent.forget()
	go func() {
		// The content of the events does not matter, as the files are read
		// again. So lost or merged events do no harm.
		events := make([]byte, 16<<10)
		for {
			n, err := watch.Read(events)
			if err != nil {
				return
			}
			if isRemoved(events[:n]) {
				_ = j.Close()
				return
			}
			j.Look()
			if j.changed != nil {
				j.changed()
			}
		}
	}()
	return nil
}

// OpenView opens the journal in dir for a process that only reads what another
// process records there, now and later. changed, which may be nil, is called
// whenever something in dir has changed. Subscriptions end with ErrClosed when
// dir is removed.
func OpenView(dir string, changed func()) (*Journal, error) {
	j := &Journal{dir: dir, grown: make(chan struct{}), changed: changed}
	if err := j.Follow(); err != nil {
		return nil, err
	}
	// From here on every change is noticed.
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lookAgain()
	if len(j.segments) == 0 {
		j.watch.Close()
		return nil, fmt.Errorf("read event journal: %s has no journal: %w", dir, fs.ErrNotExist)
	}
	return j, nil
}

// isRemoved reports whether the watched directory was removed. When the kernel
// removes a watch, it sends IN_IGNORED (inotify(7)) as its last event.
func isRemoved(events []byte) bool {
	for len(events) >= syscall.SizeofInotifyEvent {
		if binary.NativeEndian.Uint32(events[4:])&syscall.IN_IGNORED != 0 {
			return true
		}
		size := syscall.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		events = events[min(len(events), size):]
	}
	return false
}
