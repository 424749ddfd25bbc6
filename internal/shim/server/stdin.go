// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"sync"

	"holdfast/internal/shim/stream"
)

// stdin is the container's standard input during one run. It exists before the run,
// for clients that attach early.
type stdin struct {
	ready chan struct{} // closed when open or end was called

	mu       sync.Mutex
	f        *os.File     // nil: input is discarded
	pipe     *stream.Pipe // f for clients; nil with it
	decided  bool
	terminal bool
	closed   bool // closed by closeInput
}

func newStdin() *stdin { return &stdin{ready: make(chan struct{})} }

func (i *stdin) open(f *os.File, terminal bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.decided {
		i.f, i.terminal, i.decided = f, terminal, true
		if f != nil {
			i.pipe = stream.NewPipe(f)
		}
		close(i.ready)
	}
}

// await waits until the run has begun and returns its input, or nil. Writes fail
// after the run's end.
func (i *stdin) await() *stream.Pipe {
	<-i.ready
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.pipe
}

// closeInput closes the container's input, so that it reads EOF. A terminal stays
// open.
func (i *stdin) closeInput() {
	<-i.ready
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.f != nil && !i.terminal {
		i.f.Close()
		i.closed = true
	}
}

// end is called after the run, or if it never began.
func (i *stdin) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.decided {
		i.decided = true
		close(i.ready)
	}
	if i.pipe != nil {
		i.pipe.Break()
	}
	if i.f != nil && !i.terminal {
		i.f.Close()
	}
}
