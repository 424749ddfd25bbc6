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
)

const (
	filling = ".filling"
	filled  = ".filled"
)

// CopyUp gives an empty volume its first contents: those of the folder path in
// the image's root file system at rootfs, with owners, modes, times, extended
// attributes, links and devices. Symbolic links on the way to path are
// followed within rootfs, whatever they say; those below it are copied as
// they are. Where path is no folder, or the volume is not empty, nothing
// happens. Options must be mounted already. Errors: ErrNotFound.
//
// A copy that a crash cut short is never taken for the whole: it is made aside
// and then moved in, and the move is finished by the next CopyUp.
func (v *Volumes) CopyUp(rootfs, path, name string) error {
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
	empty, err := isEmpty(dst)
	if err != nil {
		return fail(err)
	}
	if !empty {
		return nil
	}
	src, err := fs.RootPath(rootfs, path)
	if err != nil {
		return fail(err)
	}
	st, err := os.Lstat(src)
	if errors.Is(err, iofs.ErrNotExist) || err == nil && !st.IsDir() {
		return nil
	}
	if err != nil {
		return fail(err)
	}
	mounted, err := mountinfo.Mounted(dst)
	if err != nil {
		return fail(err)
	}
	if mounted {
		// Another file system: nothing can be moved there. It goes away with
		// its contents, or they are the user's own.
		if err := copyDir(dst, src); err != nil {
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
	if err := moveIn(done, dst); err != nil {
		return fail(err)
	}
	return nil
}

func copyDir(dst, src string) error {
	return fs.CopyDir(dst, src, fs.WithXAttrErrorHandler(func(_, _, _ string, err error) error {
		// The volume's file system may not have the attributes of the image's.
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		return err
	}))
}

// moveIn moves all that is in from into to, and gives to the owner and mode of
// from. Names that are there already stay. A running container may have to
// before its eyes: it is opened once and names below it are not followed.
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

// Usage is how many bytes a volume takes on the disk. Error: ErrNotFound.
func (v *Volumes) Usage(ctx context.Context, name string) (int64, error) {
	if _, err := v.find(name); err != nil {
		return 0, err
	}
	u, err := fs.DiskUsage(ctx, v.data(name))
	if err != nil {
		return 0, fmt.Errorf("size of volume %s: %w", name, err)
	}
	return u.Size, nil
}
