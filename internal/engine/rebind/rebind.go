// Package rebind gives a running container the file that is there now in place
// of one that it has bound and that was replaced since. A socket can't be
// listened on again once its listener is gone, so a daemon that starts after a
// crash makes a new one, and a container that had bound the old one would never
// reach a daemon again.
//
// It changes the container's mount namespace alone, and nothing in it but the
// mount at one path.
package rebind

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace opens the mount namespace of a process. Whether it is the right
// process's is for the caller to check once it is open. The caller closes it.
func Namespace(pid int) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
}

// Socket makes the socket at source, a path of the host's, what a container with
// this mount namespace finds at target, and reports whether it was another. What
// is mounted at target must be a socket; anything else is left as it is, with an
// error. It needs Linux 5.12.
func Socket(namespace *os.File, source, target string, readOnly bool) (changed bool, err error) {
	var now unix.Stat_t
	if err := unix.Stat(source, &now); err != nil {
		return false, &os.PathError{Op: "stat", Path: source, Err: err}
	}
	if now.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return false, fmt.Errorf("%s is no socket", source)
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
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: a thread that was in a container is not used again.
		runtime.LockOSThread()
		changed, err = within(namespace, tree, now, target)
	}()
	<-done
	return changed, err
}

// within does its part inside, in a thread of its own.
func within(namespace *os.File, tree int, now unix.Stat_t, target string) (changed bool, err error) {
	// A thread that shares its root with others can't enter a mount namespace.
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
	// There is no socket for a moment, as there was none that answers before.
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
		return false, &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return false, &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return true, nil
}
