// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Motion is held for reading during each step that moves bytes, from the system
// call to the accounting, but never while waiting for a peer. Whoever holds it for
// writing sees every stream between two steps: every byte is at its source, at its
// destination, or in a struct. It is global because a re-exec concerns the whole
// process.
var Motion sync.RWMutex

// Step makes the read side of Motion a sync.Locker.
type Step struct{}

// Lock begins a step.
func (Step) Lock() { Motion.RLock() }

// Unlock ends it.
func (Step) Unlock() { Motion.RUnlock() }

// stepSize is how many bytes a step writes at most. Longer steps would delay a
// re-exec.
const stepSize = 64 << 10

// ReadStep waits until f is readable, reads once, at most len(buf) bytes, and calls
// took within the step to account for them. At EOF and after every error but one
// took gets eof: nothing more can come from f, and further reads would not block.
// The exception is an expired deadline (os.ErrDeadlineExceeded), for which took is
// not called. At EOF the error is io.EOF.
func ReadStep(f *os.File, buf []byte, took func(p []byte, eof bool)) error {
	end := func(err error) error {
		Motion.RLock()
		took(nil, true)
		Motion.RUnlock()
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return end(err)
	}
	rerr := raw.Read(func(fd uintptr) bool {
		Motion.RLock()
		defer Motion.RUnlock()
		var n int
		if n, err = read(fd, buf); err == unix.EAGAIN {
			return false
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		took(buf[:max(n, 0)], err != nil)
		return true
	})
	if rerr != nil {
		if errors.Is(rerr, os.ErrDeadlineExceeded) {
			return rerr
		}
		return end(rerr)
	}
	return err
}

func read(fd uintptr, buf []byte) (n int, err error) {
	for {
		if n, err = unix.Read(int(fd), buf); err != unix.EINTR {
			return n, err
		}
	}
}

// WriteSteps writes all of left, at the reader's pace, and shortens left with every
// step. Left is nil when all is written.
func WriteSteps(f *os.File, left *[]byte) error {
	_, err := writeSteps(f, left, true)
	return err
}

// writeSteps reports false if it would have to block and wait is false.
func writeSteps(f *os.File, left *[]byte, wait bool) (done bool, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	for {
		full := false
		werr := raw.Write(func(fd uintptr) bool {
			Motion.RLock()
			defer Motion.RUnlock()
			if done = len(*left) == 0; done {
				*left = nil
				return true
			}
			var n int
			for {
				if n, err = unix.Write(int(fd), (*left)[:min(len(*left), stepSize)]); err != unix.EINTR {
					break
				}
			}
			if n > 0 {
				*left = (*left)[n:]
			}
			full = err == unix.EAGAIN
			return !full || !wait
		})
		switch {
		case werr != nil:
			return false, werr
		case full:
			return false, nil
		case err != nil:
			return false, err
		case done:
			return true, nil
		}
	}
}

// readPooled is ReadStep with a pooled buffer that it holds only during the step.
// It calls idle, within a step, before it waits. It returns an error only if it has
// not called took: the socket was closed, or a deadline has passed.
func readPooled(s *Socket, took func(p []byte, eof bool), idle func()) error {
	return s.raw.Read(func(fd uintptr) bool {
		Motion.RLock()
		defer Motion.RUnlock()
		buf := buffers.Get().(*[bufferSize]byte)
		defer buffers.Put(buf)
		n, err := read(fd, buf[:])
		if err == unix.EAGAIN {
			idle()
			return false
		}
		took(buf[:max(n, 0)], err != nil || n == 0)
		return true
	})
}
