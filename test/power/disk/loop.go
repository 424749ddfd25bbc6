// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// attach makes a loop device over a file. The device is detached when loop and
// all its other users have closed it.
func attach(fd int) (loop *os.File, path string, err error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer control.Close()
	for range 1000 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, "", os.NewSyscallError("LOOP_CTL_GET_FREE", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		if err := makeNode(path, n); err != nil {
			return nil, "", err
		}
		loop, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, "", err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
			Fd: uint32(fd), Size: Sector, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return loop, path, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // otherwise somebody else was faster
			return nil, "", os.NewSyscallError("LOOP_CONFIGURE", err)
		}
	}
	return nil, "", errors.New("no loop device is free")
}

// loopMajor is the major number of loop devices.
const loopMajor = 7

// makeNode makes the node of a loop device where no devtmpfs does.
func makeNode(path string, n int) error {
	err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n))))
	if err != nil && err != unix.EEXIST {
		return fmt.Errorf("mknod %s: %w", path, err)
	}
	return nil
}
