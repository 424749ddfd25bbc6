// SPDX-License-Identifier: Apache-2.0

// Package mounts makes the mounts of root filesystems: overlays of any number
// of layers, and binds. It works on paths and knows neither images nor
// containers.
package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
)

// Overlay is what an overlay mount is made of. Without Upper it is read-only.
type Overlay struct {
	Lowers      []string // top first
	Upper, Work string
}

// indexParameter reports whether the kernel has the overlay's inode index. It
// is turned off for every mount: an upper layer must be mountable again
// whatever the module's default was at the first mount.
var indexParameter = func() bool {
	_, err := os.Stat("/sys/module/overlay/parameters/index")
	return err == nil
}()

// Mount mounts o at target. It uses the mount API of Linux 6.8 and later, which
// takes each layer by itself and so does not limit the length of all options
// together. On older kernels it uses mount(2).
func (o Overlay) Mount(target string) error {
	err := o.MountByFD(target)
	if errors.Is(err, ErrOldKernel) {
		return o.MountByOptions(target)
	}
	return err
}

// ErrOldKernel is MountByFD's error if the kernel lacks a feature that it
// needs.
var ErrOldKernel = errors.New("the kernel lacks the mount API")

// MountHere is Mount for a thread that has its own mount namespace and working
// directory. It may change both.
func (o Overlay) MountHere(target string) error {
	err := o.MountByFD(target)
	if errors.Is(err, ErrOldKernel) {
		return o.mountByOptions(target)
	}
	return err
}

// MountByFD mounts o with fsopen(2), fsconfig(2) and fsmount(2).
func (o Overlay) MountByFD(target string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
		return ErrOldKernel // EPERM: some seccomp profiles allow only mount(2)
	}
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fd)

	for i, dir := range o.Lowers {
		if err := unix.FsconfigSetString(fd, "lowerdir+", dir); err != nil {
			if i == 0 && errors.Is(err, unix.EINVAL) {
				return ErrOldKernel
			}
			return fsError(fd, "layer "+dir, err)
		}
	}
	set := [][2]string{{"source", "overlay"}}
	if o.Upper != "" {
		// The kernel unescapes these two options, but not lowerdir+.
		set = append(set, [2]string{"upperdir", escape(o.Upper, `\`)}, [2]string{"workdir", escape(o.Work, `\`)})
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
	if o.Upper == "" {
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

// fsError adds the kernel's message about a configuration that it refused.
func fsError(fd int, what string, err error) error {
	buf := make([]byte, 1024)
	if n, rerr := unix.Read(fd, buf); rerr == nil && n > 0 {
		return fmt.Errorf("%s: %w (%s)", what, err, strings.TrimSpace(string(buf[:n])))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// MountByOptions mounts o with mount(2), on a thread of its own.
func (o Overlay) MountByOptions(target string) error {
	return osthread.Run(func() error {
		// The thread has a working directory of its own.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return o.mountByOptions(target)
	})
}

// mountByOptions changes the working directory. The options must fit into a
// page, so the layers are named relative to their common directory.
func (o Overlay) mountByOptions(target string) error {
	base := filepath.Dir(filepath.Dir(o.Lowers[0]))
	rel := make([]string, len(o.Lowers))
	for i, dir := range o.Lowers {
		r, err := filepath.Rel(base, dir)
		if err != nil {
			return err
		}
		rel[i] = escape(r, `\:,`)
	}
	options := "lowerdir=" + strings.Join(rel, ":")
	var flags uintptr
	if o.Upper != "" {
		options += ",upperdir=" + escape(o.Upper, `\,`) + ",workdir=" + escape(o.Work, `\,`)
	} else {
		flags = unix.MS_RDONLY
	}
	if indexParameter {
		options += ",index=off"
	}
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("%d layers are too many for mount(2); Linux 6.8 or later can mount them", len(o.Lowers))
	}
	if err := unix.Chdir(base); err != nil {
		return &os.PathError{Op: "chdir", Path: base, Err: err}
	}
	if err := unix.Mount("overlay", target, "overlay", flags, options); err != nil {
		return fmt.Errorf("mount overlay with %d layers: %w", len(o.Lowers), err)
	}
	return nil
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

// Bind mounts from at target.
func Bind(from, target string, readonly bool) error {
	if err := unix.Mount(from, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	if !readonly {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		_ = unix.Unmount(target, unix.MNT_DETACH) // it must not stay mounted writable
		return fmt.Errorf("bind %s read-only: %w", from, err)
	}
	return nil
}

// Mounted reports whether target is a mount point.
func Mounted(target string) (bool, error) {
	var stx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &stx)
	if err == nil && stx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	return mountinfo.Mounted(target)
}

// Points lists the mount points that want accepts, in mount order.
func Points(want func(string) bool) ([]string, error) {
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
