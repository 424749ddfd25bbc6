package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// overlayLayers is what an overlay mount is made of. Without upper it is read-only.
type overlayLayers struct {
	lowers      []string // top first
	upper, work string
}

// indexParameter exists where the kernel knows the overlay's inode index. It
// is turned off: an upper layer must be mountable again whatever the module's
// default was at first.
var indexParameter = func() bool {
	_, err := os.Stat("/sys/module/overlay/parameters/index")
	return err == nil
}()

// overlayMount mounts o at target, with the mount API of Linux 6.8 and later,
// which takes each layer by itself and so has no limit on the length of all
// options, or else with mount(2).
func overlayMount(o overlayLayers, target string) error {
	err := overlayMountFD(o, target)
	if errors.Is(err, errOldKernel) {
		return overlayMountOptions(o, target)
	}
	return err
}

var errOldKernel = errors.New("the kernel lacks the mount API")

func overlayMountFD(o overlayLayers, target string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
		return errOldKernel // EPERM: some seccomp profiles know only mount(2)
	}
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fd)

	for i, dir := range o.lowers {
		if err := unix.FsconfigSetString(fd, "lowerdir+", dir); err != nil {
			if i == 0 && errors.Is(err, unix.EINVAL) {
				return errOldKernel
			}
			return fsError(fd, "layer "+dir, err)
		}
	}
	set := [][2]string{{"source", "overlay"}}
	if o.upper != "" {
		set = append(set, [2]string{"upperdir", o.upper}, [2]string{"workdir", o.work})
	}
	if indexParameter {
		set = append(set, [2]string{"index", "off"})
	}
	for _, kv := range set {
		if err := unix.FsconfigSetString(fd, kv[0], kv[1]); err != nil {
			return fsError(fd, "overlay option "+kv[0]+"="+kv[1], err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fsError(fd, "overlay", err)
	}
	attrs := 0
	if o.upper == "" {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return fsError(fd, "fsmount overlay", err)
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// fsError adds what the kernel says about a configuration that it refused.
func fsError(fd int, what string, err error) error {
	buf := make([]byte, 1024)
	if n, rerr := unix.Read(fd, buf); rerr == nil && n > 0 {
		return fmt.Errorf("%s: %w (%s)", what, err, strings.TrimSpace(string(buf[:n])))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// overlayMountOptions mounts with mount(2). Its options must fit into a page,
// so the layers are named relative to their common directory, into which a
// thread of its own goes.
func overlayMountOptions(o overlayLayers, target string) error {
	base := filepath.Dir(filepath.Dir(o.lowers[0]))
	rel := make([]string, len(o.lowers))
	for i, dir := range o.lowers {
		r, err := filepath.Rel(base, dir)
		if err != nil {
			return err
		}
		rel[i] = escape(r, `\:,`)
	}
	options := "lowerdir=" + strings.Join(rel, ":")
	var flags uintptr
	if o.upper != "" {
		options += ",upperdir=" + escape(o.upper, `\,`) + ",workdir=" + escape(o.work, `\,`)
	} else {
		flags = unix.MS_RDONLY
	}
	if indexParameter {
		options += ",index=off"
	}
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("%d layers are too many for mount(2); Linux 6.8 or later can mount them", len(o.lowers))
	}
	done := make(chan error, 1)
	go func() {
		// The thread has a working directory of its own and ends with this
		// goroutine, as it is never unlocked.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := unix.Chdir(base); err != nil {
				return &os.PathError{Op: "chdir", Path: base, Err: err}
			}
			if err := unix.Mount("overlay", target, "overlay", flags, options); err != nil {
				return fmt.Errorf("mount overlay with %d layers: %w", len(o.lowers), err)
			}
			return nil
		}()
	}()
	return <-done
}

// escape puts a backslash before each character of set.
func escape(s, set string) string {
	if !strings.ContainsAny(s, set) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if strings.ContainsRune(set, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

func bindMount(from, target string, readonly bool) error {
	if err := unix.Mount(from, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	if !readonly {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		_ = unix.Unmount(target, unix.MNT_DETACH) // never leave it writable
		return fmt.Errorf("bind %s read-only: %w", from, err)
	}
	return nil
}

func isMounted(target string) (bool, error) {
	var stx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &stx)
	if err == nil && stx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	return mountinfo.Mounted(target)
}

// mountPoints lists the mount points that want accepts, in mount order.
func mountPoints(want func(string) bool) ([]string, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !want(i.Mountpoint), false
	})
	if err != nil {
		return nil, err
	}
	at := make([]string, len(infos))
	for i, info := range infos {
		at[i] = info.Mountpoint
	}
	return at, nil
}

// clearFlags takes the immutable and append-only flags from everything below
// path, so that it can be removed.
func clearFlags(path string) error {
	return filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: p, Err: err}
		}
		defer unix.Close(fd)
		flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
		if err != nil {
			return nil // the filesystem has no such flags
		}
		const locked = 0x10 | 0x20 // FS_IMMUTABLE_FL, FS_APPEND_FL of linux/fs.h
		if flags&locked == 0 {
			return nil
		}
		return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^locked))
	})
}
