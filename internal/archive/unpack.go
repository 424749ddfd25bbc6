// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/go-archive/compression"
	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
)

// Owner is a user and a group, by number.
type Owner struct{ UID, GID int }

// UnpackOptions configure Unpack.
type UnpackOptions struct {
	// KeepKind refuses to replace a directory by another file, and another file by
	// a directory.
	KeepKind bool
	// Owner owns the unpacked files. Nil takes the owners from the archive.
	Owner *Owner
}

// Unpack writes the files of a tar, compressed or not, below the directory at a
// path. Existing files are replaced, but a directory that the archive has too
// stays. Missing directories are created. Links in the tree are followed within
// the tree. A bad archive is ErrInvalidArgument; files that were unpacked before
// the error stay.
func (r *Root) Unpack(ctx context.Context, path string, src io.Reader, o UnpackOptions) error {
	base := filepath.Clean("/" + path)
	f, err := openIn(r.dir, base, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && !st.IsDir() {
		err = bad("extraction point is not a directory")
	}
	if err == nil {
		err = shown(f)
	}
	f.Close()
	if err != nil {
		return err
	}
	in := &source{ctx: ctx, r: src}
	plain, err := compression.DecompressStream(in)
	if err != nil {
		return bad("the archive can't be read: %v", errors.Join(in.err, err))
	}
	defer plain.Close()
	u := &unpacker{ctx: ctx, root: r, base: base, o: o, tr: tar.NewReader(plain)}
	defer u.forget()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := u.tr.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = u.entry(h)
		} else {
			err = &readError{err}
		}
		if read := (*readError)(nil); errors.As(err, &read) {
			return bad("the archive can't be read: %v", read)
		}
		if err != nil {
			return err
		}
	}
	// The client may send more after the end of the archive.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return bad("the archive can't be read to its end: %v", err)
	}
	return u.times()
}

func bad(format string, args ...any) error {
	return errs.Invalid(format, args...)
}

// source records a read error, and ends with its context: the holes of a sparse
// file can be read for hours without a byte from the client, so nothing else
// would notice that the client is gone.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// readError marks an error as the archive's fault, not the tree's.
type readError struct{ cause error }

func (e *readError) Error() string { return e.cause.Error() }
func (e *readError) Unwrap() error { return e.cause }

type unpacker struct {
	ctx  context.Context
	root *Root
	base string
	o    UnpackOptions
	tr   *tar.Reader
	dirs []dirTime
	buf  []byte // for the content of files

	// parent is the folder of the last entry, at parentPath; nil if there is none.
	// It is not used again once the archive has replaced a folder or a link, which
	// may be part of its path.
	parent     *os.File
	parentPath string
	replaced   bool
}

// copyBuffer is how many bytes of a file are read and written at once.
const copyBuffer = 256 << 10

// folder returns the folder at a path, and creates it if it is missing. It stays
// open until another one is asked for, as the entries of a folder usually follow
// each other.
func (u *unpacker) folder(path string) (*os.File, error) {
	if u.parent != nil && u.parentPath == path && !u.replaced {
		var st unix.Stat_t
		if err := unix.Fstat(int(u.parent.Fd()), &st); err == nil && st.Nlink > 0 {
			return u.parent, nil
		}
		// The container has removed it meanwhile.
	}
	f, err := u.root.mkdirAll(path)
	if err != nil {
		return nil, err
	}
	u.forget()
	u.parent, u.parentPath, u.replaced = f, path, false
	return f, nil
}

func (u *unpacker) forget() {
	if u.parent != nil {
		u.parent.Close()
		u.parent = nil
	}
}

// dirTime is a directory's time. It is set when nothing more is written into the
// directory.
type dirTime struct {
	path        string
	atime, time time.Time
}

// place returns the path in the tree for a name in the archive. "" is the
// directory that is unpacked into.
func (u *unpacker) place(name string) (string, error) {
	clean := filepath.Clean(strings.TrimLeft(name, "/"))
	if clean == "." {
		return "", nil
	}
	if !filepath.IsLocal(clean) {
		return "", bad("invalid name in the archive: %q leads out of it", name)
	}
	return filepath.Join(u.base, clean), nil
}

func (u *unpacker) entry(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := u.place(h.Name)
	if err != nil || path == "" {
		return err
	}
	parent, err := u.folder(filepath.Dir(path))
	if err != nil {
		return err
	}
	name := filepath.Base(path)
	owner := Owner{h.Uid, h.Gid}
	if u.o.Owner != nil {
		owner = *u.o.Owner
	}
	if h.Typeflag == tar.TypeReg {
		return u.file(parent, name, path, h, owner)
	}
	merged, err := u.makeRoom(parent, name, h)
	if err != nil {
		return err
	}
	fd := int(parent.Fd())
	failed := func(op string, err error) error {
		return &os.PathError{Op: op, Path: path, Err: err}
	}
	switch kind := uint32(0); h.Typeflag {
	case tar.TypeLink:
		return u.link(parent, name, path, h)
	case tar.TypeDir:
		if !merged {
			if err := unix.Mkdirat(fd, name, uint32(h.Mode&0o777)); err != nil {
				return failed("mkdir", err)
			}
		}
		u.dirs = append(u.dirs, dirTime{path, h.AccessTime, h.ModTime})
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, fd, name); err != nil {
			return failed("symlink", err)
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind = map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		if err := unix.Mknodat(fd, name, kind|uint32(h.Mode&0o777), int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return failed("mknod", err)
		}
	default:
		return bad("the archive has an entry of an unknown kind, %q: %q", h.Typeflag, h.Name)
	}
	made, err := open(fd, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer made.Close()
	if err := unix.Fchownat(int(made.Fd()), "", owner.UID, owner.GID, unix.AT_EMPTY_PATH); err != nil {
		return failed("chown", err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := setXattrs(self(made), path, h); err != nil {
			return err
		}
		// After chown, which clears set-user-ID.
		if err := unix.Chmod(self(made), uint32(h.Mode&0o7777)); err != nil {
			return failed("chmod", err)
		}
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	return setTimes(parent, name, h.AccessTime, h.ModTime)
}

// makeRoom removes the file of that name, unless a directory is to stay a
// directory.
func (u *unpacker) makeRoom(parent *os.File, name string, h *tar.Header) (merged bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "stat", Path: h.Name, Err: err}
	}
	is, becomes := st.Mode&unix.S_IFMT == unix.S_IFDIR, h.Typeflag == tar.TypeDir
	switch {
	case is && becomes:
		return true, nil
	case is && u.o.KeepKind:
		return false, bad("cannot overwrite directory %q with non-directory %q", h.Name, u.base)
	case becomes && u.o.KeepKind:
		return false, bad("cannot overwrite non-directory %q with directory %q", h.Name, u.base)
	case !is:
		u.replaced = u.replaced || st.Mode&unix.S_IFMT == unix.S_IFLNK
		if err := unix.Unlinkat(int(parent.Fd()), name, 0); err != nil {
			return false, &os.PathError{Op: "remove", Path: h.Name, Err: err}
		}
		return false, nil
	}
	u.replaced = true
	root, err := os.OpenRoot(self(parent))
	if err != nil {
		return false, err
	}
	defer root.Close()
	return false, root.RemoveAll(name)
}

func (u *unpacker) file(parent *os.File, name, path string, h *tar.Header, owner Owner) error {
	create := func() (int, error) {
		return unix.Openat(int(parent.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(h.Mode&0o777))
	}
	fd, err := create()
	if err == unix.EEXIST {
		if _, err := u.makeRoom(parent, name, h); err != nil {
			return err
		}
		fd, err = create()
	}
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	from := &source{ctx: u.ctx, r: u.tr}
	if u.buf == nil && h.Size > 0 {
		u.buf = make([]byte, copyBuffer)
	}
	// Without its method ReadFrom, which has a buffer of its own.
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, from, u.buf); err != nil {
		if from.err != nil {
			return &readError{from.err}
		}
		return err
	}
	if err := f.Chown(owner.UID, owner.GID); err != nil {
		return err
	}
	if err := setXattrs(self(f), path, h); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	if err := setTimes(parent, name, h.AccessTime, h.ModTime); err != nil {
		return err
	}
	return f.Close()
}

// link makes a hard link to another entry of the archive.
func (u *unpacker) link(parent *os.File, name, path string, h *tar.Header) error {
	to, err := u.place(h.Linkname)
	if err != nil {
		return err
	}
	if to == "" {
		return bad("invalid link in the archive: %q to %q", h.Name, h.Linkname)
	}
	missing := bad("invalid link in the archive: %q to %q, which is not there", h.Name, h.Linkname)
	dir, err := u.root.folder(filepath.Dir(to))
	if os.IsNotExist(err) {
		return missing
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	err = unix.Linkat(int(dir.Fd()), filepath.Base(to), int(parent.Fd()), name, 0)
	if err == unix.ENOENT {
		return missing
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: to, New: path, Err: err}
	}
	return nil
}

func setXattrs(file, path string, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		// EPERM: some of the kernel's own attributes can't be set.
		if err := unix.Setxattr(file, name, []byte(value), 0); err != nil && err != unix.EPERM {
			return fmt.Errorf("set the attribute %s of %s: %w", name, path, err)
		}
	}
	return nil
}

func setTimes(parent *os.File, name string, atime, mtime time.Time) error {
	if atime.Before(mtime) {
		atime = mtime
	}
	ts := []unix.Timespec{timespec(atime), timespec(mtime)}
	if err := unix.UtimesNanoAt(int(parent.Fd()), name, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimes", Path: name, Err: err}
	}
	return nil
}

// timespec converts a time for the kernel. A time that no file system can store
// becomes the epoch.
func timespec(t time.Time) unix.Timespec {
	ts, err := unix.TimeToTimespec(t)
	if err != nil || t.IsZero() || t.Unix() < 0 {
		return unix.Timespec{}
	}
	return ts
}

// times sets the times of the directories, in reverse order. Missing ones are
// skipped.
func (u *unpacker) times() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		parent, err := u.root.folder(filepath.Dir(d.path))
		if err == nil {
			err = setTimes(parent, filepath.Base(d.path), d.atime, d.time)
			parent.Close()
		}
		if err != nil && !vanished(err) {
			return err
		}
	}
	return nil
}
