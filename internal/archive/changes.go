// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// OpenFolder opens the tree at a trusted path of the host, without mounts in it.
func OpenFolder(path string) (*Root, error) {
	dir, err := open(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	namespace, err := open(unix.AT_FDCWD, "/proc/self/ns/mnt", unix.O_RDONLY)
	if err != nil {
		dir.Close()
		return nil, err
	}
	return &Root{dir, namespace}, nil
}

// PackAll writes everything below the root as tar, with names relative to it.
func (r *Root) PackAll(ctx context.Context, w io.Writer) error {
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), top: r.dir, links: map[inode]string{}}
	if err := p.walk(); err != nil {
		return err
	}
	return p.tw.Close()
}

// Changes returns the differences between two trees, each directory before its
// content. As in Docker, a directory with changes in it counts as modified. made
// reports whether the engine creates a mount point at a path. Such a path is left
// out if it was added and is empty or a link to the list of mounts, or if it is
// empty and had another type before.
func Changes(ctx context.Context, from, to *Root, made func(path string) bool) ([]container.FilesystemChange, error) {
	c := &comparison{ctx: ctx, from: from.dir, to: to.dir, made: made}
	if err := c.folder("/", true); err != nil {
		return nil, err
	}
	return c.found, nil
}

type comparison struct {
	ctx      context.Context
	from, to *os.File
	made     func(string) bool
	found    []container.FilesystemChange
}

// folder compares a directory of to with the same of from, if old is set.
func (c *comparison) folder(path string, old bool) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	to, names, err := list(c.to, path)
	if vanished(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { to.Close() }()
	var from *os.File
	var before []string
	if old {
		if from, before, err = list(c.from, path); err != nil {
			return err
		}
		defer func() { from.Close() }()
	}
	replaced := map[string]bool{}
	type folder struct {
		path string
		old  bool
		at   int // index in found of the directory itself
	}
	var below []folder
	add := func(path string, kind container.ChangeType) {
		c.found = append(c.found, container.FilesystemChange{Kind: kind, Path: path})
	}
	all := slices.Concat(before, names)
	slices.Sort(all)
	for _, name := range slices.Compact(all) {
		at := filepath.Join(path, name)
		_, was := slices.BinarySearch(before, name)
		if _, is := slices.BinarySearch(names, name); !is {
			add(at, container.ChangeDelete)
			continue
		}
		var st, prior unix.Stat_t
		if err := unix.Fstatat(int(to.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); vanished(err) {
			continue
		} else if err != nil {
			return &os.PathError{Op: "stat", Path: at, Err: err}
		}
		dir, wasDir := st.Mode&unix.S_IFMT == unix.S_IFDIR, false
		if was {
			if err := unix.Fstatat(int(from.Fd()), name, &prior, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return &os.PathError{Op: "stat", Path: at, Err: err}
			}
			wasDir = prior.Mode&unix.S_IFMT == unix.S_IFDIR
			if prior.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT && (dir || st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0) && c.made(at) {
				// The engine made it as a mount point in place of the image's file. A
				// directory only counts if it is not empty.
				if dir {
					add(at, container.ChangeModify)
					replaced[at] = true
				}
			} else if differ(&prior, &st) || st.Mode&unix.S_IFMT == unix.S_IFREG && !sameCapability(from, to, name) {
				add(at, container.ChangeModify)
			}
		} else if dir || !c.made(at) || !plain(to, name, &st) {
			add(at, container.ChangeAdd)
		}
		if dir {
			below = append(below, folder{at, wasDir, len(c.found)})
		}
	}
	// Only one directory is open at a time, however deep the trees are. Changes
	// below it are inserted at its place afterwards.
	to.Close()
	if from != nil {
		from.Close()
	}
	flat := c.found
	c.found = nil
	var merged []container.FilesystemChange
	next := 0
	for _, f := range below {
		merged = append(merged, flat[next:f.at]...)
		next = f.at
		if err := c.folder(f.path, f.old); err != nil {
			return err
		}
		listed := len(merged) > 0 && merged[len(merged)-1].Path == f.path
		switch {
		case len(c.found) > 0 && !listed:
			merged = append(merged, container.FilesystemChange{Kind: container.ChangeModify, Path: f.path})
		case len(c.found) == 0 && listed && (merged[len(merged)-1].Kind == container.ChangeAdd && c.made(f.path) || replaced[f.path]):
			merged = merged[:len(merged)-1]
		}
		merged = append(merged, c.found...)
		c.found = nil
	}
	c.found = append(merged, flat[next:]...)
	return nil
}

// plain reports whether a file is as the engine makes it: empty, or a link to the
// list of mounts.
func plain(dir *os.File, name string, st *unix.Stat_t) bool {
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return st.Size == 0
	}
	target := make([]byte, len(mounts)+1)
	n, err := unix.Readlinkat(int(dir.Fd()), name, target)
	return err == nil && string(target[:n]) == mounts
}

// mounts is the target of a container's link /etc/mtab.
const mounts = "/proc/mounts"

// list opens a directory and returns its names, sorted.
func list(root *os.File, path string) (*os.File, []string, error) {
	dir, err := openIn(root, path, unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, nil, err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	slices.Sort(names)
	return dir, names, nil
}

// differ compares what Docker compares: neither size nor time of directories.
func differ(a, b *unix.Stat_t) bool {
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return true
	}
	return a.Mode&unix.S_IFMT != unix.S_IFDIR && (a.Mtim != b.Mtim || a.Size != b.Size)
}

func sameCapability(a, b *os.File, name string) bool {
	of := func(dir *os.File) []byte {
		buf := make([]byte, 64)
		n, err := unix.Lgetxattr(self(dir)+"/"+name, "security.capability", buf)
		if err != nil {
			return nil
		}
		return buf[:n]
	}
	return bytes.Equal(of(a), of(b))
}

// whiteout begins the name of an entry that marks a removed file (OCI image spec,
// layer.md).
const whiteout = ".wh."

// PackChanges writes changes as a layer: added and modified files, and a whiteout
// for each removed one.
func (r *Root) PackChanges(ctx context.Context, changes []container.FilesystemChange, w io.Writer) error {
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), top: r.dir, links: map[inode]string{}}
	for _, c := range changes {
		dir, name := filepath.Split(strings.TrimPrefix(c.Path, "/"))
		if c.Kind == container.ChangeDelete {
			if err := p.head(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteout + name, Mode: 0o600}); err != nil {
				return err
			}
			continue
		}
		parent, err := openIn(r.dir, "/"+dir, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
		if vanished(err) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = p.name(parent, name, dir+name)
		parent.Close()
		if err != nil {
			return err
		}
	}
	return p.tw.Close()
}
