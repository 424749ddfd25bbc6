// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"sync"
	"time"
)

// Process is the input of a process that a client is joined to.
type Process interface {
	// Pipe waits until the process has started. It returns nil if the process takes
	// no input.
	Pipe() *Pipe
	// CloseInput is called at the end of the client's input. It gives the process
	// EOF, unless the process's input outlives the client's. It is idempotent.
	CloseInput()
}

// input copies what a client sends to a process. Its first two fields are changed
// within steps (see Motion), and a re-exec hands them over.
type input struct {
	escape escape
	typed  []byte // read from the client and not yet written to the process

	refused  bool          // the process takes no more input
	room     []byte        // spare buffer for typed; nil while the client is idle
	patience time.Duration // Patience, unless a test shortens it
}

// take accounts for bytes of the client. It reports whether they completed the
// detach keys.
func (in *input) take(p []byte) (detached bool) {
	clean, detached := in.escape.filter(p)
	if len(clean) > 0 {
		if len(in.typed) == 0 {
			in.typed = in.room
		}
		in.typed = append(in.typed, clean...)
		in.room = in.typed[:0]
	}
	return detached
}

// end accounts for the end of the client's input: keys that were held back are
// data.
func (in *input) end() {
	in.typed = append(in.typed, in.escape.held()...)
	in.escape.pos = 0
}

// buffers are used only within a step, so that an idle client holds none.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

const bufferSize = 32 << 10

// pass writes typed to the process and discards what the process does not take.
func (in *input) pass(sock *Socket, to Process) {
	if len(in.typed) == 0 {
		return
	}
	if !in.refused {
		var pipe *Pipe
		if to != nil {
			pipe = to.Pipe()
		}
		in.refused = pipe == nil || pipe.write(&in.typed, in.patience, sock.Gone) != nil
	}
	if in.refused {
		Motion.RLock()
		in.typed = nil
		Motion.RUnlock()
	}
}
