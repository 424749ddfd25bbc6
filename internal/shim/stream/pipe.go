// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"os"
	"sync"
	"time"
)

// Pipe is our end of a process's input: a pipe, a FIFO or a terminal's master. Any
// number of clients may write to it; their writes are serialised.
type Pipe struct {
	f    *os.File
	turn chan struct{} // a lock: full while a client writes

	mu     sync.Mutex
	broken bool
}

// NewPipe uses the file, which must be non-blocking. It does not close it.
func NewPipe(f *os.File) *Pipe { return &Pipe{f: f, turn: make(chan struct{}, 1)} }

// File returns our end.
func (p *Pipe) File() *os.File { return p.f }

// Break makes all writes fail, current and future. It is called when the process
// has ended: other processes may keep its terminal open, so writes would not fail
// by themselves.
func (p *Pipe) Break() {
	p.mu.Lock()
	p.broken = true
	p.f.SetWriteDeadline(time.Unix(1, 0))
	p.mu.Unlock()
}

// allow sets the write deadline to d from now, or to none for 0. It fails after
// Break.
func (p *Pipe) allow(d time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken {
		return os.ErrClosed
	}
	until := time.Time{}
	if d > 0 {
		until = time.Now().Add(d)
	}
	return p.f.SetWriteDeadline(until)
}

// write writes all of left, at the process's pace. It fails when the process takes
// no more input. It also fails when the process has read nothing for patience and
// gone reports that the client has closed the connection.
func (p *Pipe) write(left *[]byte, patience time.Duration, gone func() bool) error {
	select {
	case p.turn <- struct{}{}:
	default:
		if err := p.wait(patience, gone); err != nil {
			return err
		}
	}
	defer func() { <-p.turn }()
	for {
		done, err := writeSteps(p.f, left, false)
		if done || err != nil {
			return err
		}
		if err := p.allow(patience); err != nil {
			return err
		}
		before := len(*left)
		done, err = writeSteps(p.f, left, true)
		if aerr := p.allow(0); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			err = aerr
		}
		if done || err != nil {
			return err
		}
		if len(*left) == before && gone() {
			return os.ErrDeadlineExceeded
		}
	}
}

// wait waits for the lock.
func (p *Pipe) wait(patience time.Duration, gone func() bool) error {
	timer := time.NewTicker(patience)
	defer timer.Stop()
	for {
		select {
		case p.turn <- struct{}{}:
			return nil
		case <-timer.C:
			if gone() {
				return os.ErrDeadlineExceeded
			}
		}
	}
}
