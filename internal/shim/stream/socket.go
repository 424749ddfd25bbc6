// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// EndTime and EndBytes bound what is read and discarded from a client after its
	// stream has ended. Closing a socket with unread bytes resets the connection:
	// the client may then lose the last output and never ask for the exit code.
	EndTime  = 10 * time.Second
	EndBytes = 1 << 30
	// Patience is how long bytes of a client that has gone wait for a process that
	// does not read them.
	Patience = 30 * time.Second
)

// Socket is a client's connection. Only one goroutine may read it, and only one may
// write.
type Socket struct {
	f       *os.File
	raw     syscall.RawConn
	closing sync.Once
}

// NewSocket takes over a connected stream socket. It closes fd if it fails.
func NewSocket(fd int) (*Socket, error) {
	// Reject other descriptors here: they would fail later and less clearly.
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
		unix.Close(fd)
		return nil, os.NewSyscallError("client's descriptor is not a stream socket: getsockopt", errOr(err, unix.ESOCKTNOSUPPORT))
	}
	if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens != 0 {
		unix.Close(fd) // Gone would never become true
		return nil, os.NewSyscallError("client's socket is a listening one: getsockopt", errOr(err, unix.EINVAL))
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setnonblock", err)
	}
	f := os.NewFile(uintptr(fd), "client")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Socket{f: f, raw: raw}, nil
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// sendEOF sends EOF to the client, and bounds the time for which the client is read
// after that. It is idempotent.
func (s *Socket) sendEOF(linger time.Duration) {
	s.f.SetReadDeadline(time.Now().Add(linger))
	s.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
}

// Refuse closes the connection at once. The client gets why if the socket has room.
func (s *Socket) Refuse(why []byte) {
	s.raw.Control(func(fd uintptr) { unix.Write(int(fd), why) })
	s.Close()
}

// Close ends the connection at once for all processes that hold the socket: the
// daemon may not have closed its copy yet.
func (s *Socket) Close() {
	s.closing.Do(func() {
		s.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
		s.f.Close()
	})
}

// Release closes this copy of the socket, when another process continues with the
// connection.
func (s *Socket) Release() { s.closing.Do(func() { s.f.Close() }) }

// Gone reports whether the client has closed the connection entirely. It does not
// block. Over TCP a closed connection looks half-closed until something is written
// to it.
func (s *Socket) Gone() bool {
	gone := true
	s.raw.Control(func(fd uintptr) { gone = hungUp(fd) })
	return gone
}

// local reports whether the connection is over a Unix socket.
func (s *Socket) local() bool {
	domain := 0
	s.raw.Control(func(fd uintptr) { domain, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN) })
	return domain == unix.AF_UNIX
}

// waitGone waits until the client has closed the connection entirely, or the socket
// was closed. Only the reader may call it, after EOF.
func (s *Socket) waitGone() { s.raw.Read(hungUp) }

func hungUp(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	unix.Poll(fds, 0)
	return fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}
