// SPDX-License-Identifier: Apache-2.0

// Package beneath accesses files below a root that a hostile process may be
// changing at the same time: a container's root file system, or a volume.
//
// The kernel resolves a path in such a tree in one step (openat2(2), Linux 5.6),
// and the opened file is used by its descriptor. A path is never checked first
// and then used again by name. Nothing is opened for reading before it is known
// to be a regular file or a directory: opening a device can have side effects,
// and opening a FIFO may never return.
//
// The package is used by the daemon and the shim.
package beneath

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Root opens a directory with O_PATH. The path must be trusted, and its last
// element must not be a link.
func Root(path string) (*os.File, error) {
	return openAt(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// Open opens a relative path below a directory. Links are followed as long as
// they stay below it. If one leads out, or is absolute, the error is unix.EXDEV.
func Open(root *os.File, path string, flags int) (*os.File, error) {
	return open(root, path, flags, unix.RESOLVE_BENEATH)
}

// OpenInRoot opens a path as a process would whose root is the directory:
// absolute links and ".." do not leave it. resolve adds restrictions
// (unix.RESOLVE_NO_SYMLINKS).
func OpenInRoot(root *os.File, path string, flags int, resolve uint64) (*os.File, error) {
	return open(root, path, flags, unix.RESOLVE_IN_ROOT|resolve)
}

func open(root *os.File, path string, flags int, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS}
	var err error
	// EAGAIN: a file was renamed meanwhile, so the kernel can't decide whether ".."
	// stays below the root. Retry.
	for range 1 << 10 {
		var fd int
		if fd, err = unix.Openat2(int(root.Fd()), path, &how); err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: err}
}

func openAt(dir int, name string, flags int, mode uint32) (*os.File, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if err != unix.EINTR {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// Name returns a path of a descriptor's file, for calls that only take paths. It
// always names that file, whatever changes in the tree.
func Name(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// Reopen opens a file again that is open with O_PATH.
func Reopen(f *os.File, flags int) (*os.File, error) {
	return openAt(unix.AT_FDCWD, Name(f), flags|unix.O_NOCTTY, 0)
}

// ErrNotRegular is ReadFile's error for a device, a FIFO and the like.
var ErrNotRegular = errors.New("not a regular file")

// ErrTooLarge is ReadFile's error for a file that is larger than its limit.
var ErrTooLarge = errors.New("the file is too large")

// ReadFile reads a regular file of at most limit bytes. The directory is the
// tree's root, and the path is resolved as by OpenInRoot. A missing file is
// fs.ErrNotExist.
func ReadFile(root *os.File, path string, limit int64) ([]byte, error) {
	f, err := OpenInRoot(root, path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: path, Err: ErrNotRegular}
	}
	r, err := Reopen(f, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = &os.PathError{Op: "read", Path: path, Err: ErrTooLarge}
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// MakeFolder makes sure that a relative path below root is a directory and has no
// links in it. It creates missing directories, for root with mode 0755, and
// replaces links, files and anything else that is in a directory's place.
func MakeFolder(root *os.File, path string) error {
	f, err := folder(root, path)
	if err != nil {
		return err
	}
	return f.Close()
}

// folder is MakeFolder, and returns the open directory.
func folder(root *os.File, path string) (*os.File, error) {
	at, err := openAt(int(root.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(path, "/") {
		next, err := step(at, name)
		at.Close()
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// retries bounds how often a file is created again that another process removes.
const retries = 32

func step(dir *os.File, name string) (*os.File, error) {
	fd := int(dir.Fd())
	var err error
	for range retries {
		var f *os.File
		if f, err = openAt(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err == nil {
			return f, nil
		}
		switch {
		case errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			if rerr := unix.Unlinkat(fd, name, 0); rerr != nil && rerr != unix.ENOENT && rerr != unix.EISDIR {
				return nil, &os.PathError{Op: "remove", Path: name, Err: rerr}
			}
		default:
			return nil, err
		}
		switch merr := unix.Mkdirat(fd, name, 0o755); merr {
		case unix.EEXIST:
		case nil:
			// The umask must not restrict what a container may read.
			if d, err := openAt(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err == nil {
				_ = d.Chmod(0o755)
				d.Close()
			}
		default:
			return nil, &os.PathError{Op: "mkdir", Path: name, Err: merr}
		}
	}
	return nil, err
}

// MakeFile makes sure that a name in a directory is a regular file. It creates a
// missing file, empty, for root with mode 0644, and replaces a link or anything
// else except a directory, which stays.
func MakeFile(dir *os.File, name string) error {
	fd := int(dir.Fd())
	for range retries {
		var st unix.Stat_t
		err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && (st.Mode&unix.S_IFMT == unix.S_IFREG || st.Mode&unix.S_IFMT == unix.S_IFDIR) {
			return nil
		}
		if err == nil {
			err = unix.Unlinkat(fd, name, 0)
		}
		if err != nil && err != unix.ENOENT {
			return &os.PathError{Op: "replace", Path: name, Err: err}
		}
		f, err := openAt(fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o644)
		if err == nil {
			_ = f.Chmod(0o644)
			return f.Close()
		}
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return &os.PathError{Op: "create", Path: name, Err: unix.EEXIST}
}

// Add creates an empty file with a mode or, if target is not empty, a symbolic
// link to it. If the name exists already it changes nothing.
func Add(dir *os.File, name, target string, mode uint32) error {
	fd := int(dir.Fd())
	if target != "" {
		if err := unix.Symlinkat(target, fd, name); err != nil && err != unix.EEXIST {
			return &os.PathError{Op: "symlink", Path: name, Err: err}
		}
		return nil
	}
	f, err := openAt(fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	_ = f.Chmod(os.FileMode(mode)) // the umask must not apply
	return f.Close()
}

// IsFolder reports whether a name in a directory is a directory itself, and not a
// link to one. If it is missing the result is false.
func IsFolder(dir *os.File, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}
