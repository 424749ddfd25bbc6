// SPDX-License-Identifier: Apache-2.0

// Package fdpass passes a client's socket from one process to another over a Unix
// socket.
package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Space is the size of the control message with one descriptor, in bytes.
var Space = unix.CmsgSpace(4)

// Send sends a message with a socket. The caller still has to close its own copy of
// the socket.
func Send(conn *net.UnixConn, message []byte, socket *os.File) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, _, sent = conn.WriteMsgUnix(message, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, sent)
}

// Socket returns the socket in the control messages that were received with a
// message. There must be exactly one.
func Socket(control []byte) (net.Conn, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, os.NewSyscallError("parse control message", err)
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("a control message without a descriptor: %w", err)
		}
		fds = append(fds, got...)
	}
	if len(fds) != 1 {
		closeAll(fds)
		return nil, fmt.Errorf("%d descriptors instead of one", len(fds))
	}
	unix.CloseOnExec(fds[0])
	f := os.NewFile(uintptr(fds[0]), "client")
	defer f.Close()
	return net.FileConn(f)
}

// closeAll closes descriptors that arrived and are not used.
func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
