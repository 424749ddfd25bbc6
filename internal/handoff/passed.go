// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"holdfast/internal/fdpass"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// PassedConns is a listener that receives its connections as descriptors.
type PassedConns struct {
	// Control is the end of a socket pair, of which the other end sends them, each
	// with one byte.
	Control *os.File
}

// Accept waits for the next connection. io.EOF means that there will be none.
func (l *PassedConns) Accept() (net.Conn, error) {
	raw, err := l.Control.SyscallConn()
	if err != nil {
		return nil, err
	}
	word, oob := make([]byte, 1), make([]byte, fdpass.Space)
	var n, oobn int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, failed = unix.Recvmsg(int(fd), word, oob, unix.MSG_CMSG_CLOEXEC)
			if failed != unix.EINTR {
				return failed != unix.EAGAIN
			}
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	return fdpass.Socket(oob[:oobn])
}

// Close closes the control socket.
func (l *PassedConns) Close() error { return l.Control.Close() }

// Addr is required by net.Listener and has no meaning.
func (l *PassedConns) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }
