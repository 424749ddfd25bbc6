// SPDX-License-Identifier: Apache-2.0

package largefile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"
)

type unixStat = syscall.Stat_t

// View is a directory in which large files are empty. A program that copies the
// directory copies everything else of them: names, owners, modes, times, attributes and
// hard links. Fill then copies the contents.
type View struct {
	// Root is the directory.
	Root string

	dir       string           // of the view's own files
	originals map[inode]string // by the empty file
	filled    map[inode]bool   // those with a copy that is complete
	empty     map[inode]string // by the original, if it has several names
	mounts    []string         // in the order in which they were made
}

type inode struct{ dev, ino uint64 }

func inodeOf(info os.FileInfo) inode {
	st := info.Sys().(*unixStat)
	return inode{st.Dev, st.Ino}
}

// NewView makes a view of root. What it needs is made below scratch, which must be in the
// same file system as root and private to the caller. Close removes it.
func NewView(root, scratch string, files []File) (_ *View, err error) {
	if len(files) == 0 {
		return &View{Root: root}, nil
	}
	dir, err := os.MkdirTemp(scratch, "view-")
	if err != nil {
		return nil, err
	}
	v := &View{
		Root: filepath.Join(dir, "root"), dir: dir,
		originals: map[inode]string{}, filled: map[inode]bool{}, empty: map[inode]string{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Close())
		}
	}()
	if err := os.Mkdir(v.Root, 0o700); err != nil {
		return nil, err
	}
	if err := v.bind(root, v.Root); err != nil {
		return nil, err
	}
	for n, f := range files {
		if err := v.cover(root, f, filepath.Join(dir, strconv.Itoa(n))); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (v *View) bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: to, Err: err}
	}
	v.mounts = append(v.mounts, to)
	if err := unix.Mount("", to, "", unix.MS_PRIVATE, ""); err != nil {
		return &os.PathError{Op: "make private", Path: to, Err: err}
	}
	return nil
}

// cover mounts an empty file over a large one.
func (v *View) cover(root string, f File, empty string) error {
	original := filepath.Join(root, f.Path)
	id := inodeOf(f.Info)
	links := f.Info.Sys().(*unixStat).Nlink > 1
	if known := v.empty[id]; links && known != "" {
		return v.bind(known, filepath.Join(v.Root, f.Path))
	}
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		return err
	}
	if err := likeness(empty, original, f.Info); err != nil {
		return err
	}
	if links {
		v.empty[id] = empty
		// A file with one name is not copied as a hard link.
		if err := os.Link(empty, empty+".link"); err != nil {
			return err
		}
	}
	info, err := os.Lstat(empty)
	if err != nil {
		return err
	}
	v.originals[inodeOf(info)] = original
	return v.bind(empty, filepath.Join(v.Root, f.Path))
}

// likeness gives a file all of another one but its contents.
func likeness(path, original string, info os.FileInfo) error {
	st := info.Sys().(*unixStat)
	if err := os.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(path, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	names, err := sysx.LListxattr(original)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return &os.PathError{Op: "listxattr", Path: original, Err: err}
	}
	for _, name := range names {
		value, err := sysx.LGetxattr(original, name)
		if err == nil {
			err = sysx.LSetxattr(path, name, value, 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "copy attribute " + name, Path: original, Err: err}
		}
	}
	return setTimes(path, st)
}

func setTimes(path string, st *unixStat) error {
	times := []unix.Timespec{unix.Timespec(st.Atim), unix.Timespec(st.Mtim)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set times", Path: path, Err: err}
	}
	return nil
}

// capability is the attribute that the kernel removes when a file is written.
const capability = "security.capability"

// Fill gives the copy at target the contents of its original, if source is an empty file
// of the view. Times, mode and attributes of target remain.
func (v *View) Fill(ctx context.Context, target string, source os.FileInfo) error {
	if len(v.originals) == 0 || !source.Mode().IsRegular() {
		return nil
	}
	id := inodeOf(source)
	original, ok := v.originals[id]
	if !ok || v.filled[id] && source.Sys().(*unixStat).Nlink > 1 {
		return nil
	}
	src, err := os.Open(original)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(target, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	info, err := dst.Stat()
	if err != nil {
		return err
	}
	caps, _ := sysx.LGetxattr(target, capability) // most files have none
	if err := copyData(ctx, dst, src); err != nil {
		return err
	}
	if len(caps) > 0 {
		if err := sysx.LSetxattr(target, capability, caps, 0); err != nil {
			return &os.PathError{Op: "set attribute " + capability, Path: target, Err: err}
		}
	}
	if err := setTimes(target, info.Sys().(*unixStat)); err != nil {
		return err
	}
	v.filled[id] = true
	return dst.Close()
}

// Close removes the view.
func (v *View) Close() error {
	if v.dir == "" {
		return nil
	}
	for n := len(v.mounts) - 1; n >= 0; n-- {
		if err := unix.Unmount(v.mounts[n], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &os.PathError{Op: "umount", Path: v.mounts[n], Err: err} // what is mounted must not be deleted
		}
	}
	return os.RemoveAll(v.dir)
}
