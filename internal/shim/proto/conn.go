package proto

import (
	"encoding/binary"
	"encoding/json"
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
	payload, err := json.Marshal(v)
	if err != nil {
		return dst, err
	}
	if len(payload) > MaxFrame {
		return dst, fmt.Errorf("%w: %d bytes to send, the limit is %d", ErrFrame, len(payload), MaxFrame)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...), nil
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

func (c *Conn) write(p []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	for len(p) > 0 {
		var n int
		var err error
		werr := c.raw.Write(func(fd uintptr) bool {
			for {
				n, err = syscall.SendmsgN(int(fd), p, rights, nil, syscall.MSG_NOSIGNAL)
				if err != syscall.EINTR {
					return err != syscall.EAGAIN
				}
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
		payload, rest, missing, err := SplitFrame(c.in)
		if err != nil {
			return err
		}
		if payload != nil {
			err := json.Unmarshal(payload, v)
			c.in = append(c.in[:0], rest...)
			if len(c.in) == 0 && cap(c.in) > 16<<10 {
				c.in = nil // an idle connection holds no large buffer
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrFrame, err)
			}
			return nil
		}
		if err := c.fill(missing); err != nil {
			return err
		}
	}
}

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
		oob     [1040]byte // room for SCM_MAX_FD descriptors
		n, oobn int
		flags   int
		err     error
	)
	space := c.in[len(c.in):cap(c.in)]
	rerr := c.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, err = syscall.Recvmsg(int(fd), space, oob[:], syscall.MSG_CMSG_CLOEXEC)
			if err != syscall.EINTR {
				return err != syscall.EAGAIN
			}
		}
	})
	if rerr != nil {
		return rerr
	}
	if err != nil {
		return os.NewSyscallError("recvmsg", err)
	}
	if err := c.keepFDs(oob[:oobn]); err != nil {
		return err
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
	c.in = c.in[:len(c.in)+n]
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
