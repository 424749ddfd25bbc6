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

// MaxFrame is the largest payload of a frame, in bytes. A longer one is a
// broken or hostile peer.
const MaxFrame = 16 << 20

// headerSize is the length of a frame's header: the payload's length, 4 bytes,
// big-endian.
const headerSize = 4

// fdsPerSend is how many descriptors one sendmsg carries; the kernel's own
// limit is 253 (SCM_MAX_FD).
const fdsPerSend = 250

// ErrFrame says that the peer does not speak this protocol.
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

// SplitFrame takes the first frame off b. Without a whole one payload is nil
// and missing is how many more bytes it takes, as far as is known.
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

// Conn speaks frames over a Unix stream socket. It uses the descriptor alone,
// so that the shim needs no package net. One goroutine may receive; any number
// may send.
type Conn struct {
	f   *os.File
	raw syscall.RawConn

	sending sync.Mutex // one frame at a time

	in  []byte // received and not yet taken
	fds []int  // descriptors that came, in their order

	// Guard, if set, is held over each step that moves bytes, from the system
	// call until they are accounted for. Who takes what it locks finds the
	// connection between two steps. It is set before the first use.
	Guard sync.Locker

	rest  []byte // of the frame that is being sent, valid if begun
	begun bool   // some of it was
}

// Carried is a connection between two steps, without its descriptor: what
// another process needs to go on with it.
type Carried struct {
	In   []byte `json:"in,omitempty"`
	FDs  []int  `json:"fds,omitempty"`
	Rest []byte `json:"rest,omitempty"`
}

// Carry is called with the Guard held against all steps. begun says that some
// of the frame that was given to Send last was sent, and Rest is what was not.
func (c *Conn) Carry() (state Carried, begun bool) {
	state = Carried{In: c.in, FDs: c.fds}
	if c.begun {
		state.Rest = c.rest
	}
	return state, c.begun
}

// Restore goes on from another process's state. It is called before the first
// use.
func (c *Conn) Restore(state Carried) {
	c.in, c.fds = state.In, state.FDs
	if len(state.Rest) > 0 {
		c.rest, c.begun = state.Rest, true
	}
}

// Forget is called, with the Guard held, when the frame that Send has sent is
// accounted for.
func (c *Conn) Forget() { c.rest, c.begun = nil, false }

// Finish sends what another process had left of a frame.
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

// File is the socket, for deadlines.
func (c *Conn) File() *os.File { return c.f }

// Close ends the connection.
func (c *Conn) Close() error { return c.f.Close() }

// Send writes v as one frame. The descriptors travel with it and stay the
// caller's.
func (c *Conn) Send(v any, fds ...int) error {
	frame, err := AppendFrame(nil, v)
	if err != nil {
		return err
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	// All descriptors arrive before the frame's last byte: every full batch
	// rides on one byte, the rest of the frame takes the last batch.
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

// SendTogether writes several values as one frame each, in one step: the peer
// wakes up once for all of them.
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

// Receive decodes the next frame into v. io.EOF is the peer's orderly end,
// io.ErrUnexpectedEOF one in the middle of a frame.
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

// Take decodes the next frame into v if all of it was received.
func (c *Conn) Take(v any) (ok bool, err error) {
	payload, rest, _, err := SplitFrame(c.in)
	if err != nil || payload == nil {
		return false, err
	}
	err = Unmarshal(payload, v)
	c.in = append(c.in[:0], rest...)
	if len(c.in) == 0 && cap(c.in) > 16<<10 {
		c.in = nil // an idle connection holds no large buffer
	}
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return true, nil
}

// Fill waits for more of the frame that Take did not find.
func (c *Conn) Fill() error {
	_, _, missing, err := SplitFrame(c.in)
	if err != nil {
		return err
	}
	return c.fill(max(missing, 1))
}

// rightsBuf has room for SCM_MAX_FD descriptors. A connection that waits holds
// none.
type rightsBuf [1040]byte

var rightsBufs = sync.Pool{New: func() any { return new(rightsBuf) }}

// fill reads once. It grows the buffer with what arrives, not with what a
// header promises.
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
	if flags&syscall.MSG_CTRUNC != 0 {
		return fmt.Errorf("%w: descriptors were lost, the limit of open files may be reached", ErrFrame)
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

// TakeFDs gives the next n descriptors that came with the frames received so
// far. They are close-on-exec and the caller's.
func (c *Conn) TakeFDs(n int) ([]int, error) {
	if n < 0 || n > len(c.fds) {
		return nil, fmt.Errorf("%w: %d descriptors announced, %d came", ErrFrame, n, len(c.fds))
	}
	fds := c.fds[:n:n]
	c.fds = c.fds[n:]
	if len(c.fds) == 0 {
		c.fds = nil
	}
	return fds, nil
}

// DropFDs closes the descriptors that nobody took. Only the receiving
// goroutine may call it.
func (c *Conn) DropFDs() {
	for _, fd := range c.fds {
		syscall.Close(fd)
	}
	c.fds = nil
}
