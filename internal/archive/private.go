package archive

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is what is mounted in a private tree.
type Mount struct {
	Source      string // on the host
	Destination string // in the tree; made if it is missing
	ReadOnly    bool
	NoRecursion bool // what is mounted below Source is left out
}

// OpenPrivate makes a tree that nobody else sees, in a mount namespace that ends
// with the Root, or with this process. rootfs mounts its root at a folder of the
// host, at, and must do so on the thread that calls it.
func OpenPrivate(at string, rootfs func(target string) error, readonly bool, mounts []Mount) (*Root, error) {
	type result struct {
		root *Root
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, and with it the
		// namespace, but for the descriptor in Root.
		runtime.LockOSThread()
		root, err := private(at, rootfs, readonly, mounts)
		done <- result{root, err}
	}()
	r := <-done
	return r.root, r.err
}

func private(at string, rootfs func(string) error, readonly bool, mounts []Mount) (r *Root, err error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	// Nothing that is mounted here is seen on the host. What is unmounted there
	// goes here too, as far as the host shares it.
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
	// The sources come first: the root may be mounted over one of them.
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
	// The host's mounts are let go of: what is unmounted there while somebody
	// reads here must be gone.
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

// cloneTree makes a copy of a mount that is mounted nowhere yet.
func cloneTree(m Mount) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if !m.NoRecursion {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
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

// attach mounts a copied mount in the tree.
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

// touch opens what a path names, by its path alone, and makes an empty file
// where nothing is.
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
