// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// turns finds out which of two readable streams was written to first. A process that
// writes a line to standard output and then one to standard error expects this
// order in the log, also when the shim reads late. Go's poller reports streams
// that became readable together in no particular order.
//
// It uses an epoll instance, because the kernel keeps an instance's list of ready
// descriptors in the order in which they became ready.
//
// One gap is left: a process that opens a stream anew (/dev/stderr) and closes it
// puts the stream on that list without having written. The next look takes it off,
// so that the order may be wrong only if the shim was late at the next lines too.
type turns struct {
	fd int
	// mu is held from a look at the order to the end of the read that follows.
	mu sync.Mutex
}

// newTurns watches two files. It returns nil if they can't be watched.
func newTurns(files []*os.File) *turns {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		logf("standard output and standard error may be logged out of order: %v", err)
		return nil
	}
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err == nil {
			if cerr := raw.Control(func(of uintptr) {
				err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(of), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)})
			}); cerr != nil {
				err = cerr
			}
		}
		if err != nil {
			unix.Close(fd)
			return nil
		}
	}
	return &turns{fd: fd}
}

// next returns the index of the file that the reader of own, with descriptor fd,
// should read first: own, or the other one if that was written to before own. It
// returns -1 while own has neither bytes nor EOF. It is called with the lock held.
//
// The order of the two checks matters. What own has was there at the second check,
// so that nothing older in the other file can be missed.
func (t *turns) next(own int, fd uintptr) int {
	if !readable(int(fd)) {
		t.first() // takes own off the kernel's list
		return -1
	}
	if first := t.first(); first >= 0 {
		return first
	}
	return own // EOF
}

// first returns the index of the file that has been readable for the longest time,
// or -1. A call after all of a file was read takes that file off the kernel's list,
// so that its next data is ordered anew.
func (t *turns) first() int {
	// Two events, for both files: when fewer are returned than are ready, the kernel
	// moves the returned ones to the end of its list.
	var ready [2]unix.EpollEvent
	// The call never blocks and goes around the scheduler, see waiting.
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(t.fd), uintptr(unsafe.Pointer(&ready[0])), uintptr(len(ready)), 0, 0, 0)
	if errno != 0 {
		return -1
	}
	for _, e := range ready[:n] {
		if e.Events&unix.EPOLLIN != 0 {
			return int(e.Fd)
		}
	}
	return -1
}

func (t *turns) close() {
	if t != nil {
		unix.Close(t.fd)
	}
}

// readable reports whether a read would return something: bytes, EOF or an error.
// It never blocks.
func readable(fd int) bool {
	poll := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	var now unix.Timespec
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno != 0 || n > 0
}
