// SPDX-License-Identifier: Apache-2.0

// Package archive transfers file trees of containers: it reads them as tar, and
// writes tar into them. It knows neither containers nor images. A tree is given
// as a process that sees it, or as mounts that are made only for it.
//
// The content of a tree is hostile and may change meanwhile. So a path is never
// resolved from the host's root: openat2(2) resolves it within the tree. Opened
// files are used by their descriptor, or by a name in the descriptor's directory
// that is not followed. Nothing of a tree is executed or loaded. The kernel's
// file systems in it (proc, sysfs and the like) are shown as empty directories:
// they have no files of the container, and links in them lead out.
package archive

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"holdfast/internal/beneath"
)

// Root is a file tree as a container sees it. It keeps its mount namespace alive,
// so that the files under a mount do not become visible when the container ends.
type Root struct {
	dir       *os.File // O_PATH
	namespace *os.File
}

// OpenProcess opens the root of a process, with everything that is mounted there.
// start is the process's start time in clock ticks since boot. ErrNotFound means
// that the process has ended.
func OpenProcess(pid int, start uint64) (*Root, error) {
	gone := func(err error) error {
		if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
		}
		return err
	}
	// The descriptor stays that of this process, even if its number is reused.
	proc, err := open(unix.AT_FDCWD, "/proc/"+strconv.Itoa(pid), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, gone(err)
	}
	defer proc.Close()
	if began, err := startTime(proc); err != nil || began != start {
		return nil, gone(err)
	}
	namespace, err := open(int(proc.Fd()), "ns/mnt", unix.O_RDONLY)
	if err != nil {
		return nil, gone(err)
	}
	dir, err := open(int(proc.Fd()), "root", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		namespace.Close()
		return nil, gone(err)
	}
	return &Root{dir, namespace}, nil
}

// startTime returns field 22 of /proc/PID/stat.
func startTime(proc *os.File) (uint64, error) {
	f, err := open(int(proc.Fd()), "stat", unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1024)
	n, err := f.Read(buf)
	if err != nil {
		return 0, err
	}
	// The name in field 2 may contain anything. The fields after it count.
	fields := strings.Fields(string(buf[bytes.LastIndexByte(buf[:n], ')')+1 : n]))
	if len(fields) < 20 {
		return 0, os.ErrInvalid
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Close releases the tree.
func (r *Root) Close() error {
	r.dir.Close()
	return r.namespace.Close()
}

func open(dir int, name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if err != unix.EINTR {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// reopen opens a file for reading that is open with O_PATH.
func reopen(f *os.File, flags int) (*os.File, error) {
	return beneath.Reopen(f, flags)
}

// self returns a path of a descriptor's file, for calls that only take paths. It
// always names that file, whatever changes in the tree.
func self(f *os.File) string { return beneath.Name(f) }

// openIn opens a path within dir as if dir were the root directory. Other bits of
// resolve restrict the resolution further. A path that is longer than the kernel
// accepts is resolved in pieces. Links may be in the first piece alone, where they
// are followed unless resolve forbids it: the target of a link in a later one could
// not be resolved from the root. The error for such a link is unix.ELOOP.
func openIn(dir *os.File, path string, flags int, resolve uint64) (*os.File, error) {
	at := dir
	for len(path) > pathPiece {
		cut := strings.LastIndexByte(path[:pathPiece], '/')
		if cut <= 0 {
			break // no name is that long
		}
		next, err := beneath.OpenInRoot(at, path[:cut], unix.O_PATH|unix.O_DIRECTORY, resolve)
		if at != dir {
			at.Close()
		}
		if err != nil {
			return nil, err
		}
		at, path = next, path[cut+1:]
		resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	f, err := beneath.OpenInRoot(at, path, flags, resolve)
	if at != dir {
		at.Close()
	}
	return f, err
}

// pathPiece is the number of bytes of a path that are resolved at once. The
// kernel accepts less than 4096, and a tree may be deeper.
const pathPiece = 4000

// folder opens a directory, following links within the tree.
func (r *Root) folder(path string) (*os.File, error) {
	f, err := openIn(r.dir, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return f, shown(f)
}

// mkdirAll is folder, but creates missing directories, for root with mode 0755.
func (r *Root) mkdirAll(path string) (*os.File, error) {
	f, err := r.folder(path)
	if err == nil || !os.IsNotExist(err) || path == "/" {
		return f, err
	}
	parent, err := r.mkdirAll(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	name := filepath.Base(path)
	if err := unix.Mkdirat(int(parent.Fd()), name, 0o755); err != nil && err != unix.EEXIST {
		return nil, &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return open(int(parent.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// entry opens the file at a path with O_PATH. If the last element is a link, the
// link itself is opened, unless a slash or "/." after it requires a directory.
func (r *Root) entry(path string) (*os.File, error) {
	clean := filepath.Clean("/" + path)
	if clean == "/" || folderWanted(path) {
		return r.folder(clean)
	}
	parent, err := r.folder(filepath.Dir(clean))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	f, err := open(int(parent.Fd()), filepath.Base(clean), unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	return f, shown(f)
}

func folderWanted(path string) bool {
	return strings.HasSuffix(path, "/") || filepath.Base(path) == "."
}

// absolute returns a path as Docker names it: absolute, and with the suffix that
// requires a directory.
func absolute(path string) string {
	clean := filepath.Clean("/" + path)
	switch {
	case clean == "/":
	case strings.HasSuffix(path, "/."), path == ".":
		return clean + "/."
	case strings.HasSuffix(path, "/"):
		return clean + "/"
	}
	return clean
}

// kernelViews are the file systems that have no files of a container.
var kernelViews = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true,
	unix.DEVPTS_SUPER_MAGIC: true, 0x19800202 /* mqueue */ : true, unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true,
	unix.SECURITYFS_MAGIC: true, unix.BPF_FS_MAGIC: true, unix.EFIVARFS_MAGIC: true, unix.SELINUX_MAGIC: true,
	0x62656570 /* configfs */ : true, unix.NSFS_MAGIC: true, unix.BINFMTFS_MAGIC: true,
}

func kernelView(f *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	return kernelViews[int64(st.Type)], nil
}

// shown closes a file in one of the kernel's file systems and returns "not
// found". The directory on which it is mounted belongs to the container.
func shown(f *os.File) error {
	view, err := kernelView(f)
	if err == nil && view {
		var st unix.Statx_t
		err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st)
		if err == nil && (st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 || st.Mode&unix.S_IFMT != unix.S_IFDIR) {
			err = &os.PathError{Op: "open", Path: f.Name(), Err: unix.ENOENT}
		}
	}
	if err != nil {
		f.Close()
	}
	return err
}

// Stat describes the file at a path, as Docker does. For a link it also reports
// the final target, as far as it exists.
func (r *Root) Stat(path string) (container.PathStat, error) {
	f, err := r.entry(path)
	if err != nil {
		return container.PathStat{}, err
	}
	defer f.Close()
	return r.stat(f, path)
}

func (r *Root) stat(f *os.File, path string) (container.PathStat, error) {
	st, err := f.Stat()
	if err != nil {
		return container.PathStat{}, err
	}
	s := container.PathStat{Name: filepath.Base(absolute(path)), Size: st.Size(), Mode: st.Mode(), Mtime: st.ModTime().Truncate(time.Nanosecond)}
	if st.Mode()&os.ModeSymlink != 0 {
		s.LinkTarget, err = r.target(filepath.Clean("/" + path))
	}
	return s, err
}

// target follows links by their text. The result is only reported to clients and
// never opened.
func (r *Root) target(path string) (string, error) {
	done, rest := "/", strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = filepath.Dir(done)
			continue
		}
		next := filepath.Join(done, name)
		link, err := r.readlink(done, name)
		if err != nil {
			done = next
			continue
		}
		if links++; links > 255 {
			return "", &os.PathError{Op: "follow", Path: path, Err: unix.ELOOP}
		}
		if filepath.IsAbs(link) {
			done = "/"
		}
		rest = append(strings.Split(link, "/"), rest...)
	}
	return done, nil
}

func (r *Root) readlink(dir, name string) (string, error) {
	parent, err := r.folder(dir)
	if err != nil {
		return "", err
	}
	defer parent.Close()
	return readlinkat(parent, name)
}

func readlinkat(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

// Open opens a file of the tree for reading, following links within it. It
// refuses anything but regular files.
func (r *Root) Open(path string) (*os.File, error) {
	f, err := openIn(r.dir, path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	if err := shown(f); err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrInvalid}
	}
	return reopen(f, unix.O_RDONLY)
}

// ReadOnly reports whether the directory of a path is on a read-only mount. If
// there is no such directory it returns ErrNotFound or the like.
func (r *Root) ReadOnly(path string) (bool, error) {
	f, err := r.folder(filepath.Clean("/" + path))
	if err != nil {
		return false, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}
