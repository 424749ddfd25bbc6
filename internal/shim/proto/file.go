// SPDX-License-Identifier: Apache-2.0

package proto

import (
	"os"
	"syscall"
)

// ReadFile is os.ReadFile for the small state files of shim and daemon. At its
// start a daemon reads some for every container. ReadFile takes four system calls;
// os.ReadFile takes ten, as it also tries the poller. The errors are those of
// os.ReadFile.
func ReadFile(path string) ([]byte, error) {
	fd, err := openFile(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer syscall.Close(fd)
	buf := make([]byte, 0, 4<<10)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := syscall.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
}

func openFile(path string) (fd int, err error) {
	for {
		fd, err = syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != syscall.EINTR {
			return fd, err
		}
	}
}
