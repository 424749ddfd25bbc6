// SPDX-License-Identifier: Apache-2.0

// Package descriptor has what the parts of the shim need to know about descriptors: of
// which kind they are, how many there may be, and the number behind a file. It
// keeps no descriptor.
package descriptor

import (
	"os"

	"golang.org/x/sys/unix"
)

// CloseAll closes all descriptors of a list. A negative number means none.
func CloseAll(list []int) {
	for _, fd := range list {
		unix.Close(fd)
	}
}

// SocketType returns SOCK_STREAM and so on, or -1 if fd is not a socket.
func SocketType(fd int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return -1
	}
	return n
}

// Listens reports whether a socket listens.
func Listens(fd int) bool {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && n != 0
}

// Limit returns most, but not more than a quarter of the shim's descriptor limit.
func Limit(most int) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur/4 > uint64(most) {
		return most
	}
	return int(limit.Cur / 4)
}

// Number returns a file's descriptor, or -1 if f is nil or closed. Unlike
// os.File.Fd it leaves the descriptor non-blocking.
func Number(f *os.File) int {
	if f == nil {
		return -1
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return -1
	}
	fd := -1
	raw.Control(func(n uintptr) { fd = int(n) })
	return fd
}

// File wraps a non-blocking descriptor. It returns nil for a negative one.
func File(fd int, name string) *os.File {
	if fd < 0 {
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}
