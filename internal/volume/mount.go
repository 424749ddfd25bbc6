// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"holdfast/internal/beneath"
)

// mounts reports whether a volume's options mount something.
func (m meta) mounts() bool { return m.Options["device"] != "" || m.Options["type"] != "" }

// Mount prepares a volume for a container, ref, that is about to run, and returns
// the directory of its content. An existing mount stays. Errors: ErrNotFound;
// that of mount(2) with what was to be mounted.
func (v *Volumes) Mount(ctx context.Context, name, ref string) (string, error) {
	e, err := v.lock(name)
	if err != nil {
		return "", err
	}
	defer e.mu.Unlock()
	path := v.data(name)
	if e.meta.mounts() {
		// Ask the kernel and not refs, because the machine may have been rebooted.
		mounted, err := mountinfo.Mounted(path)
		if err != nil {
			return "", fmt.Errorf("mount volume %s: %w", name, err)
		}
		if !mounted {
			if err := e.meta.mount(ctx, path); err != nil {
				return "", err
			}
		}
	}
	e.refs[ref] = struct{}{}
	return path, nil
}

func (m meta) mount(ctx context.Context, path string) error {
	typ, device := m.Options["type"], m.Options["device"]
	o, err := resolve(ctx, typ, device, m.Options["o"])
	if err != nil {
		return fmt.Errorf("mount volume %s: %w", m.Name, err)
	}
	if err := mount.Mount(device, path, typ, o); err != nil {
		// Only report the cause: the whole error repeats the path and all options,
		// which may contain a password.
		var cause unix.Errno
		if errors.As(err, &cause) {
			err = cause
		}
		return fmt.Errorf("failed to mount local volume %s: mount %s (type %s) on %s: %w", m.Name, device, typ, path, err)
	}
	return nil
}

// resolve replaces the host name in the options of a network file system by an
// address, because the kernel does not resolve names.
func resolve(ctx context.Context, typ, device, o string) (string, error) {
	var opts []string
	if o != "" {
		opts = strings.Split(o, ",")
	}
	switch typ {
	case "nfs", "nfs4", "cifs", "smb3":
	default:
		return o, nil
	}
	for i, opt := range opts {
		host, ok := strings.CutPrefix(opt, "addr=")
		if !ok {
			continue
		}
		addr, err := lookup(ctx, host)
		if err != nil {
			return "", err
		}
		opts[i] = "addr=" + addr
		return strings.Join(opts, ","), nil
	}
	if typ == "cifs" || typ == "smb3" {
		u, err := url.Parse(device)
		if err == nil && u.Hostname() != "" {
			addr, err := lookup(ctx, u.Hostname())
			if err != nil {
				return "", err
			}
			return strings.Join(append(opts, "addr="+addr), ","), nil
		}
	}
	return o, nil
}

func lookup(ctx context.Context, host string) (string, error) {
	if net.ParseIP(host) != nil {
		return host, nil
	}
	addrs, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return "", fmt.Errorf("error resolving passed in network volume address: %w", err)
	}
	return addrs[0], nil
}

// Unmount records that ref no longer runs. After the last ref, the options' mount
// is removed. A missing volume or ref is not an error.
func (v *Volumes) Unmount(name, ref string) error {
	e, err := v.lock(name)
	if err != nil {
		return nil
	}
	defer e.mu.Unlock()
	delete(e.refs, ref)
	return v.settle(e)
}

// settle unmounts a volume that no container uses.
func (v *Volumes) settle(e *entry) error {
	if len(e.refs) > 0 || !e.meta.mounts() {
		return nil
	}
	if err := unmountAll(v.data(e.meta.Name)); err != nil {
		return fmt.Errorf("unmount volume %s: %w", e.meta.Name, err)
	}
	return nil
}

// Restore records which containers run and use which volume, by name. refs must
// have all of them. Mounts for other volumes are removed. A missing mount is left
// to the next Mount, because a running container would not see a mount that is
// made now. Restore handles all volumes and joins their errors.
func (v *Volumes) Restore(refs map[string][]string) error {
	v.mu.Lock()
	names := slices.Sorted(maps.Keys(v.entries))
	v.mu.Unlock()
	var errs []error
	for _, name := range names {
		e, err := v.lock(name)
		if err != nil {
			continue // removed meanwhile
		}
		clear(e.refs)
		for _, ref := range refs[name] {
			e.refs[ref] = struct{}{}
		}
		errs = append(errs, v.settle(e))
		e.mu.Unlock()
	}
	return errors.Join(errs...)
}

// mountsBelow returns the mount points at and below path, the deepest first.
func mountsBelow(path string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range infos {
		out = append(out, m.Mountpoint)
	}
	// Later mounts are on top of, or below, earlier ones.
	slices.Reverse(out)
	return out, nil
}

// unmountAll removes all mounts at and below path. They are detached, so that an
// open file does not prevent it.
func unmountAll(path string) error {
	below, err := mountsBelow(path)
	if err != nil {
		return err
	}
	for _, m := range below {
		if err := unmount(path, m); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return nil
}

// unmount removes the mount at a path that is root or below it. It does not
// follow a directory on the way from root that has become a link.
func unmount(root, path string) error {
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return err
	}
	if rel == "." {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.EINVAL { // it is no longer mounted
			err = nil
		}
		return err
	}
	top, err := beneath.Root(root)
	if err != nil {
		return err
	}
	defer top.Close()
	at, err := beneath.OpenInRoot(top, rel, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // the mount went with its folder
	}
	if err != nil {
		return err
	}
	defer at.Close()
	if err := unix.Unmount(beneath.Name(at), unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return err
	}
	return nil
}
