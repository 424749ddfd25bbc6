// SPDX-License-Identifier: Apache-2.0

// Package rebind replaces a socket that a running container has bind-mounted,
// after the socket's file was replaced on the host. Once its listener is gone a
// socket can't be listened on again, so a daemon that starts after a crash
// creates a new one. A container that had mounted the old one could otherwise
// never reach a daemon again.
//
// It only changes the container's mount namespace, and in it only the mount at
// one path.
package rebind

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
)

// Namespace opens the mount namespace of a process. The caller must check
// afterwards that it is the intended process, and closes the file.
func Namespace(pid int) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
}

// Socket mounts the socket at source, a path of the host, at target in a
// container's mount namespace, and reports whether another socket was mounted
// there. If target is not a mounted socket, it changes nothing and returns an
// error. It needs Linux 5.12.
func Socket(namespace *os.File, source, target string, readOnly bool) (changed bool, err error) {
	var now unix.Stat_t
	if err := unix.Stat(source, &now); err != nil {
		return false, &os.PathError{Op: "stat", Path: source, Err: err}
	}
	if now.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return false, fmt.Errorf("%s is not a socket", source)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return false, &os.PathError{Op: "open_tree", Path: source, Err: err}
	}
	defer unix.Close(tree)
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return false, os.NewSyscallError("mount_setattr", err)
		}
	}
	// A thread that was in a container must not be used again.
	err = osthread.Run(func() (err error) {
		changed, err = within(namespace, tree, now, target)
		return err
	})
	return changed, err
}

// within runs in the container's namespace, on a thread of its own.
func within(namespace *os.File, tree int, now unix.Stat_t, target string) (changed bool, err error) {
	// A thread that shares its root directory with others can't enter a mount
	// namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return false, os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return false, os.NewSyscallError("setns", err)
	}
	var there unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, target, 0, unix.STATX_TYPE|unix.STATX_INO, &there); err != nil {
		return false, &os.PathError{Op: "statx", Path: target, Err: err}
	}
	if there.Ino == now.Ino && unix.Mkdev(there.Dev_major, there.Dev_minor) == now.Dev {
		return false, nil
	}
	if there.Mode&unix.S_IFMT != unix.S_IFSOCK || there.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, errors.New("no socket is mounted at " + target + " any more")
	}
	// For a moment there is no socket. The container loses nothing, because the old
	// one had no listener.
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
		return false, &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return false, &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return true, nil
}
