// SPDX-License-Identifier: Apache-2.0

package beneath

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

type inode struct{ dev, ino uint64 }

// Usage returns the bytes on the disk that a directory and everything below it
// uses. A file with several names counts once. With a base, the path of another
// directory, files that base has too, unchanged, do not count. Files that
// disappear or change their type meanwhile are left out, and so is what is nested
// too deep to be named.
func Usage(ctx context.Context, path, base string) (int64, error) {
	root, err := Root(path)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	u := &usage{ctx: ctx, root: root, seen: map[inode]bool{}}
	if base != "" {
		if u.base, err = Root(base); err != nil {
			return 0, err
		}
		defer u.base.Close()
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if base == "" {
		u.size = st.Blocks * 512
	}
	if err := u.folder("."); err != nil {
		return 0, err
	}
	return u.size, nil
}

type usage struct {
	ctx        context.Context
	root, base *os.File
	seen       map[inode]bool // files with several names that were counted
	size       int64
}

// folder adds up the content of a directory. Only one directory is open at a
// time, however deep the tree is.
func (u *usage) folder(rel string) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	dir, err := OpenInRoot(u.root, rel, unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return err
	}
	if err != nil {
		return nil
	}
	defer func() { dir.Close() }()
	var before *os.File
	if u.base != nil {
		if before, err = OpenInRoot(u.base, rel, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS); err == nil {
			defer before.Close()
		}
	}
	names, err := dir.Readdirnames(-1)
	if err != nil && len(names) == 0 {
		return nil // it was removed meanwhile
	}
	var below []string
	for _, name := range names {
		var st, prior unix.Stat_t
		if unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			below = append(below, name)
		}
		if before != nil && unix.Fstatat(int(before.Fd()), name, &prior, unix.AT_SYMLINK_NOFOLLOW) == nil && same(&prior, &st) {
			continue
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			at := inode{st.Dev, st.Ino}
			if u.seen[at] {
				continue
			}
			u.seen[at] = true
		}
		u.size += st.Blocks * 512
	}
	dir.Close()
	if before != nil {
		before.Close()
	}
	for _, name := range below {
		if err := u.folder(rel + "/" + name); err != nil {
			return err
		}
	}
	return nil
}

// same reports whether a file is unchanged, as far as that shows without reading
// it. A directory's time is ignored: it changes with the directory's content,
// which is compared by itself.
func same(a, b *unix.Stat_t) bool {
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return false
	}
	return a.Mode&unix.S_IFMT == unix.S_IFDIR || a.Mtim == b.Mtim && a.Size == b.Size
}
