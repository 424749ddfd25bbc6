// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/continuity/fs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"holdfast/internal/beneath"
	"holdfast/internal/durable"
	"holdfast/internal/errs"
	"holdfast/internal/osthread"
)

const (
	filling = ".filling"
	filled  = ".filled"
)

// Fills reports whether the image in rootfs has a directory at path, so that
// CopyUp has something to copy.
func (v *Volumes) Fills(rootfs, path string) (bool, error) {
	src, err := folder(rootfs, path)
	return src != "", err
}

// CopyUp fills an empty volume, or the empty directory at the relative path
// subpath in it, with the content of the directory path in the image's root file
// system at rootfs. It copies owners, modes, times, extended attributes, links
// and devices. Symbolic links on the way to path are resolved within rootfs;
// those below it are copied as links. It does nothing if path or subpath is not a
// directory, or if the volume's directory is not empty. The volume's options must
// be mounted already. Errors: ErrNotFound for the volume; ErrInvalidArgument if
// subpath leads out of it.
//
// A copy that a crash interrupted is never taken for complete: the copy is made
// in another directory and then moved in, and the next CopyUp finishes the move.
// A move into a subpath is not finished, because a container that uses the volume
// may have moved the directory by then.
func (v *Volumes) CopyUp(rootfs, path, name, subpath string) error {
	e, err := v.lock(name)
	if err != nil {
		return err
	}
	defer e.mu.Unlock()
	fail := func(err error) error { return fmt.Errorf("copy %s of the image to volume %s: %w", path, name, err) }

	dst := v.data(name)
	aside, done := filepath.Join(v.path(name), filling), filepath.Join(v.path(name), filled)
	if err := os.RemoveAll(aside); err != nil {
		return fail(err)
	}
	if _, err := os.Lstat(done); err == nil {
		if err := moveIn(done, dst); err != nil {
			return fail(err)
		}
		return nil
	}
	if subpath != "" {
		return v.copyUpInto(rootfs, path, name, subpath, aside)
	}
	empty, err := isEmpty(dst)
	if err != nil {
		return fail(err)
	}
	if !empty {
		return nil
	}
	src, err := folder(rootfs, path)
	if err != nil {
		return fail(err)
	}
	if src == "" {
		return nil
	}
	mounted, err := mountinfo.Mounted(dst)
	if err != nil {
		return fail(err)
	}
	if mounted {
		// The target is another file system, so files can't be renamed into it. After
		// a crash it is gone together with its content, or the content is the user's
		// own.
		to, err := os.Open(dst)
		if err != nil {
			return fail(err)
		}
		defer to.Close()
		if err := copyApart(to, src, aside); err != nil {
			return fail(err)
		}
		return nil
	}
	if err := copyDir(aside, src); err != nil {
		os.RemoveAll(aside)
		return fail(err)
	}
	if err := os.Rename(aside, done); err != nil {
		return fail(err)
	}
	// With one durable file of its container the volume counts as filled, so the
	// copy must be complete on the disk before the container starts.
	if err := durable.SyncDir(v.path(name)); err != nil {
		return fail(err)
	}
	if err := moveIn(done, dst); err != nil {
		return fail(err)
	}
	return nil
}

// copyUpInto is CopyUp for a part of a volume. Containers may change the volume
// meanwhile, so the part is opened once and only its descriptor is used.
func (v *Volumes) copyUpInto(rootfs, path, name, subpath, aside string) error {
	fail := func(err error) error {
		return fmt.Errorf("copy %s of the image to %s of volume %s: %w", path, subpath, name, err)
	}
	root, err := beneath.Root(v.data(name))
	if err != nil {
		return fail(err)
	}
	defer root.Close()
	part, err := beneath.Open(root, subpath, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.EXDEV):
		return errs.Invalid("subpath %s of volume %s leads out of the volume", subpath, name)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return nil // not a directory, or missing: the start reports what is wrong
	case err != nil:
		return fail(err)
	}
	defer part.Close()
	if empty, err := isEmpty(beneath.Name(part)); err != nil || !empty {
		if err != nil {
			err = fail(err)
		}
		return err
	}
	src, err := folder(rootfs, path)
	if err != nil {
		return fail(err)
	}
	if src == "" {
		return nil
	}
	if err := copyApart(part, src, aside); err != nil {
		return fail(err)
	}
	return nil
}

// copyDir copies a directory durably: after a loss of power no file of a complete
// copy is empty. One call for the file system is faster than one for each file and
// directory.
func copyDir(dst, src string) error {
	err := fs.CopyDir(dst, src, fs.WithXAttrErrorHandler(func(_, _, _ string, err error) error {
		// The volume's file system may not support the image's attributes.
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		return err
	}))
	if err != nil {
		return err
	}
	d, err := os.Open(dst)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: dst, Err: err}
	}
	return nil
}

// copyApart is copyDir into a directory that other processes may change: a file
// system that several volumes use, or a directory of the host. Files are created
// by name, so a link that such a process creates meanwhile could lead elsewhere.
// So the copy runs in a mount namespace of its own. Its root is mounted on the
// empty directory room and has only the two directories. The namespace ends with
// the copy.
func copyApart(dst *os.File, src, room string) error {
	// A mount of another namespace can't be cloned, so clone it here.
	fd, err := unix.OpenTree(int(dst.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(fd)
	if err := os.Mkdir(room, 0o700); err != nil {
		return err
	}
	defer os.Remove(room)
	// The namespace ends with the thread.
	return osthread.Run(func() error { return apart(fd, src, room) })
}

func apart(dst int, src, room string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := unix.Mount("tmpfs", room, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return os.NewSyscallError("mount", err)
	}
	for _, at := range []string{"/dst", "/src"} {
		if err := os.Mkdir(room+at, 0o700); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(dst, "", unix.AT_FDCWD, room+"/dst", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	if err := unix.Mount(src, room+"/src", "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: src, Err: err}
	}
	if err := unix.Mount("", room+"/src", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := unix.Chdir(room); err != nil {
		return os.NewSyscallError("chdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return os.NewSyscallError("chdir", err)
	}
	return copyDir("/dst", "/src")
}

// moveIn moves everything in from into to, and gives to the owner and mode of
// from. Existing names stay. A running container may change to meanwhile: it is
// opened once and names below it are not followed.
func moveIn(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := os.Open(to)
	if err != nil {
		return err
	}
	defer t.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Renameat2(int(f.Fd()), n, int(t.Fd()), n, unix.RENAME_NOREPLACE)
		if err != nil && err != unix.EEXIST {
			return &os.PathError{Op: "rename", Path: filepath.Join(to, n), Err: err}
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if err := t.Chown(int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(int(t.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	return os.RemoveAll(from)
}

func isEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	if err == io.EOF {
		return true, nil
	}
	return len(names) == 0, err
}

// Usage returns the bytes that a volume uses on the disk. Error: ErrNotFound.
func (v *Volumes) Usage(ctx context.Context, name string) (int64, error) {
	if _, err := v.find(name); err != nil {
		return 0, err
	}
	size, err := beneath.Usage(ctx, v.data(name), "")
	if err != nil {
		return 0, fmt.Errorf("size of volume %s: %w", name, err)
	}
	return size, nil
}

// folder returns a directory of an image's tree, or "" if the image has none at
// that path.
func folder(rootfs, path string) (string, error) {
	src, err := fs.RootPath(rootfs, path)
	if err != nil {
		return "", err
	}
	st, err := os.Lstat(src)
	if errors.Is(err, iofs.ErrNotExist) || err == nil && !st.IsDir() {
		return "", nil
	}
	return src, err
}
