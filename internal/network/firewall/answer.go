// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// socket sends encoded messages to the kernel's netfilter. It stays open, because
// closing a socket that deleted something first waits for an RCU grace period,
// which takes ten milliseconds and more.
type socket struct{ fd int }

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netfilter socket: %w", err)
	}
	for _, opt := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, socketBuffer); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("netfilter socket: %w", err)
		}
	}
	return &socket{fd}, nil
}

func (s *socket) Close() error { return unix.Close(s.fd) }

// send returns the first error in the kernel's answers. A transaction is complete
// when sendto returns, so all answers can be read then.
func (s *socket) send(messages []byte) error {
	if err := unix.Sendto(s.fd, messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netfilter: send: %w", err)
	}
	var first error
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return first
		}
		if err != nil {
			return fmt.Errorf("netfilter: receive: %w", err)
		}
		if err := firstError(buf[:n]); first == nil {
			first = err
		}
	}
}

// Send sends messages such as those of DeleteBatches on a new socket.
func Send(messages []byte) error {
	s, err := openSocket()
	if err != nil {
		return err
	}
	return errors.Join(s.send(messages), s.Close())
}

// firstError parses each struct nlmsghdr and returns the first error in a struct
// nlmsgerr.
func firstError(b []byte) error {
	for len(b) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return fmt.Errorf("netfilter: an answer of %d bytes in %d", length, len(b))
		}
		body := b[unix.SizeofNlMsghdr:length]
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && len(body) >= 4 {
			if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
				return unix.Errno(errno)
			}
		}
		b = b[min((length+3)&^3, len(b)):]
	}
	return nil
}
