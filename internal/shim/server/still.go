package server

import (
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A shim that goes on as another binary must stand still for a moment: every
// byte is either where it came from, or where it goes to, or in a struct. Two
// things see to that.
//
// motion is held for reading over each step that moves bytes, from the system
// call to the accounting, and never while something is waited for. Who holds it
// for writing finds all that is moved between two steps. It belongs to the
// process, as execve does.
//
// A gate is passed by each operation of several steps that can't be left in the
// middle: a call of the runtime, a request, the end of a run. Who shuts it waits
// until those inside have left.
var motion sync.RWMutex

// moving is motion as a Locker, for reading.
type moving struct{}

func (moving) Lock()   { motion.RLock() }
func (moving) Unlock() { motion.RUnlock() }

// gate is entered by any number, until somebody shuts it.
type gate struct {
	mu       sync.Mutex
	inside   int
	shut     bool
	shutting chan struct{} // closed while somebody wants it shut; made anew
	changed  chan struct{} // closed at every change
}

func newGate() *gate {
	return &gate{shutting: make(chan struct{}), changed: make(chan struct{})}
}

// tell is called with the lock held.
func (g *gate) tell() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// enter waits while the gate is shut. It must not be entered twice by one.
func (g *gate) enter() {
	g.mu.Lock()
	for g.shut {
		changed := g.changed
		g.mu.Unlock()
		<-changed
		g.mu.Lock()
	}
	g.inside++
	g.mu.Unlock()
}

func (g *gate) leave() {
	g.mu.Lock()
	g.inside--
	g.tell()
	g.mu.Unlock()
}

// wanted is closed when those inside are to hurry out.
func (g *gate) wanted() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shutting
}

// close shuts the gate and waits until nobody is inside. It reports false, with
// the gate open, when that takes too long or another has shut it.
func (g *gate) close(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return false
	}
	g.shut = true
	close(g.shutting)
	for g.inside > 0 {
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
			g.mu.Lock()
		case <-timer.C:
			g.mu.Lock()
			if g.inside > 0 {
				g.reopen()
				return false
			}
		}
	}
	return true
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reopen()
}

func (g *gate) reopen() {
	g.shut = false
	g.shutting = make(chan struct{})
	g.tell()
}

// readStep reads once, at most len(buf) bytes, and has them accounted for by
// took within the step. It returns io.EOF at the end, which took is told of by
// no bytes.
func readStep(f *os.File, buf []byte, took func(p []byte, eof bool)) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	rerr := raw.Read(func(fd uintptr) bool {
		motion.RLock()
		defer motion.RUnlock()
		var n int
		for {
			if n, err = unix.Read(int(fd), buf); err != unix.EINTR {
				break
			}
		}
		switch {
		case err == unix.EAGAIN:
			return false
		case err == nil && n == 0:
			err = io.EOF
			took(nil, true)
		case err == nil:
			took(buf[:n], false)
		default:
			took(nil, true)
		}
		return true
	})
	if rerr != nil {
		return rerr
	}
	return err
}

// writeSteps writes all that left holds, at the reader's pace, and shortens it
// with every step.
func writeSteps(f *os.File, left *[]byte) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for {
		done := false
		werr := raw.Write(func(fd uintptr) bool {
			motion.RLock()
			defer motion.RUnlock()
			if done = len(*left) == 0; done {
				return true
			}
			var n int
			for {
				if n, err = unix.Write(int(fd), (*left)[:min(len(*left), readSize)]); err != unix.EINTR {
					break
				}
			}
			if n > 0 {
				*left = (*left)[n:]
			}
			return err != unix.EAGAIN
		})
		if werr != nil {
			return werr
		}
		if err != nil {
			return err
		}
		if done {
			*left = nil
			return nil
		}
	}
}
