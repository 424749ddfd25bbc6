// Package archive moves file trees of containers: it reads them as tar, and
// writes tar into them. It knows neither containers nor images: a tree is given
// as a process that sees it, or as mounts that are made for it alone.
//
// What is in a tree belongs to somebody hostile, who changes it meanwhile. A
// path is therefore never resolved from the host's root: openat2(2) resolves it
// within the tree, and what was opened is worked on by its descriptor or by one
// name in it that is not followed. Nothing is run or loaded from a tree. The
// views of the kernel in it (proc, sysfs and the like) are shown as empty
// folders: they hold no files of the container, and links in them lead out.
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
)

// Root is a file tree as a container sees it. It holds its mount namespace, so
// that nothing comes to light under a mount when the container ends.
type Root struct {
	dir       *os.File // O_PATH
	namespace *os.File
}

// OpenProcess opens the root of a process, with all that is mounted there. start
// is the process's start time in clock ticks since boot. ErrNotFound: it is
// gone.
func OpenProcess(pid int, start uint64) (*Root, error) {
	gone := func(err error) error {
		if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
		}
		return err
	}
	// The folder is the process's for ever, whoever gets the number after it.
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

// startTime is field 22 of /proc/PID/stat.
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
	// The name in field 2 may hold anything; the fields after it count.
	fields := strings.Fields(string(buf[bytes.LastIndexByte(buf[:n], ')')+1 : n]))
	if len(fields) < 20 {
		return 0, os.ErrInvalid
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Close lets go of the tree.
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

// reopen opens for reading what is open by its path alone.
func reopen(f *os.File, flags int) (*os.File, error) {
	return open(unix.AT_FDCWD, self(f), flags)
}

// self is a name of what a descriptor stands for, for calls that take only
// names. It leads nowhere else, whatever happens in the tree.
func self(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// openIn opens a path within dir as if dir were the root of all. Other values
// of resolve narrow that down.
func openIn(dir *os.File, path string, flags int, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	var err error
	// EAGAIN: something was renamed meanwhile, and the kernel can't tell whether
	// ".." stays within.
	for range 1 << 10 {
		var fd int
		if fd, err = unix.Openat2(int(dir.Fd()), path, &how); err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: err}
}

// folder opens a folder, following links within the tree.
func (r *Root) folder(path string) (*os.File, error) {
	f, err := openIn(r.dir, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return f, shown(f)
}

// mkdirAll is folder that makes what is missing, for root with mode 0755.
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

// entry opens, by its path alone, what a path names. A last element that is a
// link is opened itself, unless a slash or "/." after it asks for a folder.
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

// absolute is a path as Docker names it: from the root, and with the ending that
// asks for a folder.
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

// kernelViews are the file systems that hold no files of a container's.
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

// shown closes what is in a view of the kernel and says that it isn't there.
// The folder on which the view is mounted is the container's.
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

// Stat tells about what a path names, as Docker does: of a link it tells where
// that leads in the end, as far as there is something.
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

// target follows links by their text. What comes of it is told to clients, and
// opened by nobody here.
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

// Open opens a file of the tree for reading, following links within it. What is
// no regular file is refused.
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

// ReadOnly reports whether the folder of a path is mounted so that nothing can
// be written there, and, as ErrNotFound and the like, whether there is none.
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
