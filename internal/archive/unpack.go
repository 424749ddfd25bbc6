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

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive/compression"
	"golang.org/x/sys/unix"
)

// Owner is a user and a group, by number.
type Owner struct{ UID, GID int }

// UnpackOptions say how an archive is unpacked.
type UnpackOptions struct {
	// KeepKind refuses to put a folder in the place of something else, and
	// something else in the place of a folder.
	KeepKind bool
	// Owner owns what is unpacked; nil leaves that to the archive.
	Owner *Owner
}

// Unpack writes the files of a tar, compressed or not, below the folder that a
// path names. What is there is replaced, but a folder by a folder stays. Missing
// folders are made. Links in the tree are followed within the tree. A bad
// archive is ErrInvalidArgument; what came before stays.
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
	in := &source{r: src}
	plain, err := compression.DecompressStream(in)
	if err != nil {
		return bad("the archive can't be read: %v", errors.Join(in.err, err))
	}
	defer plain.Close()
	u := &unpacker{root: r, base: base, o: o, tr: tar.NewReader(plain)}
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
	// The end of the archive is not yet that of what the client sends.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return bad("the archive can't be read to its end: %v", err)
	}
	return u.times()
}

func bad(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// source remembers that reading failed.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// readError marks that the archive is at fault, not the tree.
type readError struct{ cause error }

func (e *readError) Error() string { return e.cause.Error() }
func (e *readError) Unwrap() error { return e.cause }

type unpacker struct {
	root *Root
	base string
	o    UnpackOptions
	tr   *tar.Reader
	dirs []dirTime
}

// dirTime is the time of a folder, which is set when nothing more is written
// into it.
type dirTime struct {
	path        string
	atime, time time.Time
}

// place is the path, in the tree, of a name in the archive. "" is the folder
// that is unpacked into.
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
	parent, err := u.root.mkdirAll(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer parent.Close()
	name := filepath.Base(path)
	merged, err := u.makeRoom(parent, name, h)
	if err != nil {
		return err
	}
	owner := Owner{h.Uid, h.Gid}
	if u.o.Owner != nil {
		owner = *u.o.Owner
	}
	fd := int(parent.Fd())
	failed := func(op string, err error) error {
		return &os.PathError{Op: op, Path: path, Err: err}
	}
	switch kind := uint32(0); h.Typeflag {
	case tar.TypeReg:
		return u.file(parent, name, path, h, owner)
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
		// After the owner, whose change takes set-user-ID away.
		if err := unix.Chmod(self(made), uint32(h.Mode&0o7777)); err != nil {
			return failed("chmod", err)
		}
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	return setTimes(parent, name, h.AccessTime, h.ModTime)
}

// makeRoom removes what has the name, unless it is a folder and stays one.
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
		if err := unix.Unlinkat(int(parent.Fd()), name, 0); err != nil {
			return false, &os.PathError{Op: "remove", Path: h.Name, Err: err}
		}
		return false, nil
	}
	root, err := os.OpenRoot(self(parent))
	if err != nil {
		return false, err
	}
	defer root.Close()
	return false, root.RemoveAll(name)
}

func (u *unpacker) file(parent *os.File, name, path string, h *tar.Header, owner Owner) error {
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(h.Mode&0o777))
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	from := &source{r: u.tr}
	if _, err := io.Copy(f, from); err != nil {
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
		// EPERM: of the kernel's own attributes not all can be set.
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

// timespec is a time for the kernel; what no file system can hold is the epoch.
func timespec(t time.Time) unix.Timespec {
	ts, err := unix.TimeToTimespec(t)
	if err != nil || t.IsZero() || t.Unix() < 0 {
		return unix.Timespec{}
	}
	return ts
}

// times sets those of the folders, the last first. One that is gone has none.
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
