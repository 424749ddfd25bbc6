// SPDX-License-Identifier: Apache-2.0

package beside

import (
	"sync"
	"time"
)

// Life decides when a process ends: when it has had nothing to do for a while, or when
// it is told to. Its methods may be called by several goroutines.
type Life struct {
	rest time.Duration
	work Work
	done chan struct{} // closed when the process shall end

	mu      sync.Mutex
	clients int // that are here
	came    int // clients that have ever come
	timer   *time.Timer
	ending  bool
}

func newLife(rest time.Duration) *Life { return &Life{rest: rest, done: make(chan struct{})} }

// begin starts the time after which a process without work ends.
func (l *Life) begin(w Work) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.work = w
	l.timer = time.AfterFunc(l.rest, l.tire)
}

// Begin notes that a client has come, until end is called, which may be called again.
// It returns false if the process is about to end.
func (l *Life) Begin() (end func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending {
		return nil, false
	}
	l.clients++
	l.came++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.clients--
		l.restLocked()
	}), true
}

// Rest notes that the process has less to do than before. If it has nothing left, it
// ends after a while.
func (l *Life) Rest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restLocked()
}

func (l *Life) restLocked() {
	if l.clients == 0 && l.timer != nil {
		l.timer.Reset(l.rest)
	}
}

// tire ends a process that has had nothing to do for a while.
func (l *Life) tire() {
	l.mu.Lock()
	idle, came := l.clients == 0 && !l.ending && !l.work.Busy(), l.came
	l.mu.Unlock()
	if !idle {
		return // what ends later starts the timer again
	}
	l.work.Tidy()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.came == came && !l.work.Busy() { // nobody came meanwhile
		l.endLocked()
	}
}

// stop ends the process, unless all is false and there is something to do. It reports
// whether the process ends.
func (l *Life) stop(all bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if all || l.clients == 0 && !l.work.Busy() {
		l.endLocked()
	}
	return l.ending
}

func (l *Life) endLocked() {
	if !l.ending {
		l.ending = true
		close(l.done)
	}
}
