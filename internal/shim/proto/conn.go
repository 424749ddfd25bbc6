// SPDX-License-Identifier: Apache-2.0

package proto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
)

// MaxFrame is the largest payload of a frame, in bytes. A longer one means a broken
// or hostile peer.
const MaxFrame = 16 << 20

// headerSize is the length of a frame's header: the payload's length, 4 bytes,
// big-endian.
const headerSize = 4

// fdsPerSend is how many descriptors one sendmsg carries; the kernel's limit is 253
// (SCM_MAX_FD).
const fdsPerSend = 250

// ErrFrame means that the peer does not speak this protocol.
var ErrFrame = errors.New("broken frame")

// AppendFrame appends v as one frame to dst.
func AppendFrame(dst []byte, v any) ([]byte, error) {
	start := len(dst)
	frame, err := appendJSON(append(dst, 0, 0, 0, 0), v)
	if err != nil {
		return dst, err
	}
	n := len(frame) - start - headerSize
	if n > MaxFrame {
		return dst, fmt.Errorf("%w: %d bytes to send, the limit is %d", ErrFrame, n, MaxFrame)
	}
	binary.BigEndian.PutUint32(frame[start:], uint32(n))
	return frame, nil
}

// SplitFrame takes the first frame off b. If it is incomplete, payload is nil and
// missing is how many more bytes are needed, as far as that is known.
func SplitFrame(b []byte) (payload, rest []byte, missing int, err error) {
	if len(b) < headerSize {
		return nil, b, headerSize - len(b), nil
	}
	n := binary.BigEndian.Uint32(b)
	if n == 0 || n > MaxFrame {
		return nil, b, 0, fmt.Errorf("%w: length %d, want 1 to %d", ErrFrame, n, MaxFrame)
	}
	end := headerSize + int(n)
	if len(b) < end {
		return nil, b, end - len(b), nil
	}
	return b[headerSize:end], b[end:], 0, nil
}

// Conn sends and receives frames over a Unix stream socket. It works on the
// descriptor, so that the shim need not link package net. One goroutine may
// receive; any number may send.
type Conn struct {
	f   *os.File
	raw syscall.RawConn

	sending sync.Mutex // one frame at a time

	// MaxFDs bounds how many descriptors may have arrived and not been taken; 0 is
	// no bound. It must be set before the first use.
	MaxFDs int

	in  []byte // received and not yet decoded
	fds []int  // descriptors received and not yet taken, in order

	// Guard, if set, is held during each step that moves bytes, from the system call
	// to the accounting. Whoever locks it against all steps sees the connection
	// between two of them. It must be set before the first use.
	Guard sync.Locker

	rest  []byte // the unsent part of the current frame, valid if begun
	begun bool   // part of the frame was sent
}

// Carried is the state of a connection between two steps, except its descriptor.
// With it the binary that a process re-execs can continue.
type Carried struct {
	In   []byte `json:"in,omitempty"`
	FDs  []int  `json:"fds,omitempty"`
	Rest []byte `json:"rest,omitempty"`
}

// Carry returns the state. It is called with the Guard held against all steps.
// begun means that part of the frame last given to Send was sent; Rest is the
// remainder.
func (c *Conn) Carry() (state Carried, begun bool) {
	state = Carried{In: c.in, FDs: c.fds}
	if c.begun {
		state.Rest = c.rest
	}
	return state, c.begun
}

// Restore continues from the state of the previous binary. It must be called before
// the first use.
func (c *Conn) Restore(state Carried) {
	c.in, c.fds = state.In, state.FDs
	if len(state.Rest) > 0 {
		c.rest, c.begun = state.Rest, true
	}
}

// Forget is called, with the Guard held, once the frame that Send has sent is
// accounted for.
func (c *Conn) Forget() { c.rest, c.begun = nil, false }

// Finish sends the rest of a frame that a re-exec interrupted.
func (c *Conn) Finish() error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if !c.begun {
		return nil
	}
	return c.write(c.rest, nil)
}

func (c *Conn) guard() func() {
	if c.Guard == nil {
		return func() {}
	}
	c.Guard.Lock()
	return c.Guard.Unlock
}

// NewConn takes over a connected Unix stream socket, as a descriptor.
func NewConn(fd int) (*Conn, error) {
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("setnonblock", err)
	}
	f := os.NewFile(uintptr(fd), "shim connection")
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Conn{f: f, raw: raw}, nil
}

// File returns the socket, for setting deadlines.
func (c *Conn) File() *os.File { return c.f }

// Close closes the connection.
func (c *Conn) Close() error { return c.f.Close() }

// Send writes v as one frame. The descriptors are sent with it and remain the
// caller's.
func (c *Conn) Send(v any, fds ...int) error {
	frame, err := AppendFrame(nil, v)
	if err != nil {
		return err
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	// All descriptors must arrive before the frame's last byte: each full batch is
	// sent with a single byte, and the last batch with the rest of the frame.
	for len(fds) > fdsPerSend {
		if len(frame) < 2 {
			return fmt.Errorf("%w: %d descriptors too many", ErrFrame, len(fds))
		}
		if err := c.write(frame[:1], fds[:fdsPerSend]); err != nil {
			return err
		}
		frame, fds = frame[1:], fds[fdsPerSend:]
	}
	return c.write(frame, fds)
}

// SendTogether writes each value as one frame, all in one write, so that the peer
// wakes up only once.
func (c *Conn) SendTogether(all ...any) error {
	var frames []byte
	for _, v := range all {
		var err error
		if frames, err = AppendFrame(frames, v); err != nil {
			return err
		}
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	return c.write(frames, nil)
}

func (c *Conn) write(p []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	for len(p) > 0 {
		var n int
		var err error
		werr := c.raw.Write(func(fd uintptr) bool {
			defer c.guard()()
			for {
				n, err = syscall.SendmsgN(int(fd), p, rights, nil, syscall.MSG_NOSIGNAL)
				if err == syscall.EINTR {
					continue
				}
				if err == nil {
					c.rest, c.begun = p[n:], true
				}
				return err != syscall.EAGAIN
			}
		})
		if werr != nil {
			return werr
		}
		if err != nil {
			return os.NewSyscallError("sendmsg", err)
		}
		p, rights = p[n:], nil
	}
	return nil
}

// Receive decodes the next frame into v. It returns io.EOF if the peer has closed
// the connection, and io.ErrUnexpectedEOF if that was in the middle of a frame.
func (c *Conn) Receive(v any) error {
	for {
		ok, err := c.Take(v)
		if ok || err != nil {
			return err
		}
		if err := c.Fill(); err != nil {
			return err
		}
	}
}

// Take decodes the next frame into v if it has been received completely.
func (c *Conn) Take(v any) (ok bool, err error) {
	payload, rest, _, err := SplitFrame(c.in)
	if err != nil || payload == nil {
		return false, err
	}
	err = Unmarshal(payload, v)
	c.in = append(c.in[:0], rest...)
	if len(c.in) == 0 && cap(c.in) > 16<<10 {
		c.in = nil // an idle connection keeps no large buffer
	}
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return true, nil
}

// Fill waits for more bytes of a frame that Take found incomplete.
func (c *Conn) Fill() error {
	_, _, missing, err := SplitFrame(c.in)
	if err != nil {
		return err
	}
	return c.fill(max(missing, 1))
}

// rightsBuf has room for SCM_MAX_FD descriptors. It is pooled, so that a waiting
// connection holds none.
type rightsBuf [1040]byte

var rightsBufs = sync.Pool{New: func() any { return new(rightsBuf) }}

// fill reads once. The buffer grows with what arrives, not with the length in a
// header, which the peer controls.
func (c *Conn) fill(missing int) error {
	want := min(max(missing, 512), 64<<10)
	if cap(c.in)-len(c.in) < want {
		grown := make([]byte, len(c.in), max(2*cap(c.in), len(c.in)+want))
		copy(grown, c.in)
		c.in = grown
	}
	var (
		n, flags int
		err      error
	)
	space := c.in[len(c.in):cap(c.in)]
	var kept error
	rerr := c.raw.Read(func(fd uintptr) bool {
		defer c.guard()()
		oob := rightsBufs.Get().(*rightsBuf)
		defer rightsBufs.Put(oob)
		for {
			var rights int
			n, rights, flags, _, err = syscall.Recvmsg(int(fd), space, oob[:], syscall.MSG_CMSG_CLOEXEC)
			if err == syscall.EINTR {
				continue
			}
			if err == nil {
				kept = c.keepFDs(oob[:rights])
				c.in = c.in[:len(c.in)+n]
			}
			return err != syscall.EAGAIN
		}
	})
	if rerr != nil {
		return rerr
	}
	if err != nil {
		return os.NewSyscallError("recvmsg", err)
	}
	if kept != nil {
		return kept
	}
	if c.MaxFDs > 0 && len(c.fds) > c.MaxFDs {
		return fmt.Errorf("%w: %d descriptors arrived and no frame announced them", ErrFrame, len(c.fds))
	}
	if flags&syscall.MSG_CTRUNC != 0 {
		return fmt.Errorf("%w: descriptors were lost: the limit of open files may be reached", ErrFrame)
	}
	if n == 0 {
		if len(c.in) > 0 {
			return io.ErrUnexpectedEOF
		}
		return io.EOF
	}
	return nil
}

func (c *Conn) keepFDs(oob []byte) error {
	if len(oob) == 0 {
		return nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials and the like
		}
		c.fds = append(c.fds, fds...)
	}
	return nil
}

// TakeFDs returns the next n descriptors received with frames so far. They are
// close-on-exec and belong to the caller.
func (c *Conn) TakeFDs(n int) ([]int, error) {
	if n < 0 || n > len(c.fds) {
		return nil, fmt.Errorf("%w: %d descriptors announced, %d received", ErrFrame, n, len(c.fds))
	}
	fds := c.fds[:n:n]
	c.fds = c.fds[n:]
	if len(c.fds) == 0 {
		c.fds = nil
	}
	return fds, nil
}

// DropFDs closes all descriptors that were not taken. Only the receiving goroutine
// may call it.
func (c *Conn) DropFDs() {
	for _, fd := range c.fds {
		syscall.Close(fd)
	}
	c.fds = nil
}
