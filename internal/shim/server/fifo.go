// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// makeFIFO makes a new FIFO. It belongs to the container's user, who may therefore
// open it as /dev/stdout.
func makeFIFO(boot *proto.Bootstrap, name string) (string, error) {
	path := filepath.Join(boot.RunDir, name)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return "", err
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return "", &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return path, os.Chown(path, int(boot.UID), int(boot.GID))
}

func openFIFO(path string, flags int) (int, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// outputFIFO opens both ends. The container's end is read-write: without a shim the
// container's writes then block until the next shim reads, instead of failing with
// EPIPE.
func outputFIFO(boot *proto.Bootstrap, name string) (*os.File, int, error) {
	path, err := makeFIFO(boot, name)
	if err != nil {
		return nil, -1, err
	}
	r, err := openFIFO(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, -1, err
	}
	w, err := openFIFO(path, unix.O_RDWR)
	if err != nil {
		unix.Close(r)
		return nil, -1, err
	}
	// A larger pipe means fewer switches between writer and reader. If the kernel
	// refuses the size, its default is used.
	unix.FcntlInt(uintptr(r), unix.F_SETPIPE_SZ, pipeSize)
	return os.NewFile(uintptr(r), name), w, nil
}

// stdinFIFO opens both ends. The container's end is read-only, so that closing ours
// gives it EOF.
func stdinFIFO(boot *proto.Bootstrap) (*os.File, int, error) {
	path, err := makeFIFO(boot, "stdin")
	if err != nil {
		return nil, -1, err
	}
	r, err := openFIFO(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, -1, err
	}
	w, err := openFIFO(path, unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		unix.Close(r)
		return nil, -1, err
	}
	// O_NONBLOCK was needed only to open it: the container gets a blocking
	// descriptor.
	if err := unix.SetNonblock(r, false); err != nil {
		unix.Close(r)
		unix.Close(w)
		return nil, -1, os.NewSyscallError("setnonblock", err)
	}
	return os.NewFile(uintptr(w), "stdin"), r, nil
}
