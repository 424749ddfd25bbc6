// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

// execIO has both sides of a session's stdio.
type execIO struct {
	child  stdio
	stdin  *os.File
	stdout *os.File
	stderr *os.File

	pipe *stream.Pipe // stdin, as the client's input uses it
}

// newExecIO makes pipes for the streams that a client wants; the others are
// /dev/null.
func newExecIO(c proto.ExecCreate, client bool) (_ *execIO, err error) {
	io := &execIO{child: noStdio}
	if c.Tty || !client {
		return io, nil
	}
	defer func() {
		if err != nil {
			io.childDone()
			io.close()
		}
	}()
	if c.Stdin {
		if io.child[0], io.stdin, err = pipe(c, true); err != nil {
			return nil, err
		}
	}
	if c.Stdout {
		if io.child[1], io.stdout, err = pipe(c, false); err != nil {
			return nil, err
		}
	}
	if c.Stderr {
		if io.child[2], io.stderr, err = pipe(c, false); err != nil {
			return nil, err
		}
	}
	return io, nil
}

// pipe makes a pipe owned by the process's user. childReads: the child gets the
// reading end.
func pipe(c proto.ExecCreate, childReads bool) (child int, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, os.NewSyscallError("pipe", err)
	}
	mine := 0
	if childReads {
		mine = 1
	}
	unix.Fchown(fds[0], int(c.UID), int(c.GID)) // so that the process may open /dev/stdout
	if err := unix.SetNonblock(fds[mine], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return -1, nil, os.NewSyscallError("setnonblock", err)
	}
	return fds[1-mine], os.NewFile(uintptr(fds[mine]), "pipe"), nil
}

func (io *execIO) childDone() {
	io.child.close()
	io.child = noStdio
}

func (io *execIO) close() {
	for _, f := range []*os.File{io.stdin, io.stdout, io.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// begin makes the process's input ready for a client.
func (io *execIO) begin(c proto.ExecCreate) {
	if io.stdin != nil && c.Stdin {
		io.pipe = stream.NewPipe(io.stdin)
	}
}

// execInput is the input of a session's process.
type execInput struct {
	*execIO
	create proto.ExecCreate
}

func (x execInput) Pipe() *stream.Pipe { return x.pipe }

// CloseInput closes the process's input, so that it reads EOF. A terminal stays
// open.
func (x execInput) CloseInput() {
	if x.stdin != nil && !x.create.Tty {
		x.stdin.Close()
	}
}

// execReader copies one stream of a session to its client.
type execReader struct {
	f      *os.File
	src    format.Source
	client *stream.Session // nil without a client: output is discarded
	done   chan struct{}
	eof    bool // valid once done is closed

	turns *turns // nil with a single stream, or if it could not be created
	turn  int    // its index in turns
	twin  *execReader
}

// await waits until the stream is readable or at its end. An error means that the
// session has ended.
func (r *execReader) await() error {
	raw, err := r.f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

// take reads once and queues the bytes for the client. If the process wrote to the
// other stream first, take reads that one before. It returns how many bytes its own
// stream gave; errors are those of read(2), and 0 without an error is EOF.
func (r *execReader) take() (n int, err error) {
	raw, err := r.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if r.turns == nil {
		return r.read(raw)
	}
	r.turns.mu.Lock()
	defer r.turns.mu.Unlock()
	next := r.turn
	if err := raw.Control(func(fd uintptr) { next = r.turns.next(r.turn, fd) }); err != nil {
		return 0, err
	}
	if next < 0 {
		return 0, unix.EAGAIN
	}
	if next != r.turn {
		if other, err := r.twin.f.SyscallConn(); err == nil {
			_, _ = r.twin.read(other) // the other reader handles its EOF and errors
		}
	}
	return r.read(raw)
}

func (r *execReader) read(raw syscall.RawConn) (n int, err error) {
	if cerr := raw.Control(func(fd uintptr) { n, err = r.client.Copy(int(fd), byte(r.src)) }); cerr != nil {
		return 0, cerr
	}
	return n, err
}

func (r *execReader) run() {
	defer close(r.done)
	// After the process has ended only the output that it left is read: processes
	// that it started may hold the stream open for long.
	ended := false
	for left := drainLimit; left > 0; {
		if !ended {
			ended = r.await() != nil
		}
		r.client.AwaitRoom()
		n, err := r.take()
		switch {
		case n > 0:
			if ended {
				left -= n
			}
		case err == unix.EAGAIN:
			if ended {
				return
			}
		default:
			r.eof = true
			return
		}
	}
}

// discard keeps reading a stream whose session has ended and discards the bytes,
// until EOF, so that surviving processes neither block nor get an error. There can
// be any number of such streams: beyond orphansMax the oldest is closed, and a
// process that still writes to it gets EPIPE, or EIO from a terminal. It is called
// with the lock held.
func (e *execs) discard(r *execReader) {
	if r.eof {
		r.f.Close()
		return
	}
	if len(e.orphans) >= orphansMax {
		e.orphans[0].Close() // this ends its goroutine too
	}
	e.orphans = append(e.orphans, r.f)
	go func() {
		r.f.SetReadDeadline(time.Time{})
		buf := make([]byte, 4<<10)
		for {
			if _, err := r.f.Read(buf); err != nil {
				break
			}
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.orphans = slices.DeleteFunc(e.orphans, func(f *os.File) bool { return f == r.f })
		r.f.Close()
	}()
}
