// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
)

// Mount is a mount in a private tree.
type Mount struct {
	Source      string   // on the host
	Tree        *os.File // a detached mount, instead of Source; the caller keeps ownership
	Destination string   // in the tree; created if missing
	ReadOnly    bool
	NoRecursion bool // without mounts below Source
}

// OpenPrivate makes a tree that no other process sees, in a mount namespace that
// ends with the Root or with this process. rootfs mounts the root file system at
// a directory of the host, at. It must do so on the calling thread.
func OpenPrivate(at string, rootfs func(target string) error, readonly bool, mounts []Mount) (*Root, error) {
	var root *Root
	// The thread ends, and the namespace then only lives by the descriptor in Root.
	err := osthread.Run(func() (err error) {
		root, err = private(at, rootfs, readonly, mounts)
		return err
	})
	return root, err
}

func private(at string, rootfs func(string) error, readonly bool, mounts []Mount) (r *Root, err error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	// Mounts made here must not be visible on the host. Unmounts on the host
	// propagate here, for mounts that the host shares.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return nil, os.NewSyscallError("mount", err)
	}
	namespace, err := open(unix.AT_FDCWD, "/proc/thread-self/ns/mnt", unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			namespace.Close()
		}
	}()
	// Open the sources first, because the root may be mounted over one of them.
	sources := make([]*os.File, len(mounts))
	defer func() {
		for _, f := range sources {
			f.Close()
		}
	}()
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b Mount) int {
		return cmp.Compare(strings.Count(filepath.Clean(a.Destination), "/"), strings.Count(filepath.Clean(b.Destination), "/"))
	})
	for i, m := range mounts {
		if sources[i], err = cloneTree(m); err != nil {
			return nil, err
		}
	}
	if err := rootfs(at); err != nil {
		return nil, err
	}
	dir, err := open(unix.AT_FDCWD, at, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dir.Close()
		}
	}()
	r = &Root{dir, namespace}
	for i, m := range mounts {
		if err := r.attach(sources[i], m); err != nil {
			return nil, fmt.Errorf("mount %s at %s: %w", m.Source, m.Destination, err)
		}
	}
	if readonly {
		if err := setReadOnly(dir, 0); err != nil {
			return nil, err
		}
	}
	// Release the host's mounts: one that is unmounted there must go, even while
	// this tree is in use.
	if err := unix.Fchdir(int(dir.Fd())); err != nil {
		return nil, os.NewSyscallError("fchdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return nil, os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return nil, os.NewSyscallError("umount", err)
	}
	return r, nil
}

// cloneTree makes a detached copy of a mount.
func cloneTree(m Mount) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if !m.NoRecursion {
		flags |= unix.AT_RECURSIVE
	}
	var fd int
	var err error
	if m.Tree != nil {
		// It belongs to the host's namespace and could only be cloned there. It is
		// only attached once here, so no clone is needed.
		fd, err = unix.FcntlInt(m.Tree.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_SLAVE})
			if err != nil {
				unix.Close(fd)
			}
		}
	} else {
		fd, err = unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: m.Source, Err: err}
	}
	f := os.NewFile(uintptr(fd), m.Source)
	if m.ReadOnly {
		if err := setReadOnly(f, unix.AT_RECURSIVE); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func setReadOnly(f *os.File, flags uint) error {
	err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return os.NewSyscallError("mount_setattr", err)
}

// attach mounts a detached mount in the tree.
func (r *Root) attach(source *os.File, m Mount) error {
	st, err := source.Stat()
	if err != nil {
		return err
	}
	path := filepath.Clean("/" + m.Destination)
	var dest *os.File
	if st.IsDir() {
		dest, err = r.mkdirAll(path)
	} else {
		dest, err = r.touch(path)
	}
	if err != nil {
		return err
	}
	defer dest.Close()
	err = unix.MoveMount(int(source.Fd()), "", int(dest.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// touch opens the file at a path with O_PATH. It creates an empty file if there
// is none.
func (r *Root) touch(path string) (*os.File, error) {
	f, err := openIn(r.dir, path, unix.O_PATH, 0)
	if !os.IsNotExist(err) {
		return f, err
	}
	parent, err := r.mkdirAll(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	fd, err := unix.Openat(int(parent.Fd()), filepath.Base(path), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
