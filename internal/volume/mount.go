package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mounts reports whether a volume's options mount something.
func (m meta) mounts() bool { return m.Options["device"] != "" || m.Options["type"] != "" }

// Mount has the volume ready for a container, ref, that is about to run, and
// returns the folder of its contents. What is mounted already stays as it is.
// Errors: ErrNotFound; that of mount(2) with what was to be mounted.
func (v *Volumes) Mount(ctx context.Context, name, ref string) (string, error) {
	e, err := v.lock(name)
	if err != nil {
		return "", err
	}
	defer e.mu.Unlock()
	path := v.data(name)
	if e.meta.mounts() {
		// Asked of the kernel, not of refs: the machine may have been
		// started since.
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
		// The cause alone: the whole error repeats the path and all options,
		// and a password may be among them.
		var cause unix.Errno
		if errors.As(err, &cause) {
			err = cause
		}
		return fmt.Errorf("failed to mount local volume %s: mount %s (type %s) on %s: %w", m.Name, device, typ, path, err)
	}
	return nil
}

// resolve turns the host name in the options of a network file system into an
// address: the kernel knows no names.
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

// Unmount says that ref does not run any more. When it was the last one, what
// the options mounted goes. A volume or ref that is not there is no error.
func (v *Volumes) Unmount(name, ref string) error {
	e, err := v.lock(name)
	if err != nil {
		return nil
	}
	defer e.mu.Unlock()
	delete(e.refs, ref)
	return v.settle(e)
}

// settle unmounts a volume that nobody uses.
func (v *Volumes) settle(e *entry) error {
	if len(e.refs) > 0 || !e.meta.mounts() {
		return nil
	}
	if err := unmountAll(v.data(e.meta.Name)); err != nil {
		return fmt.Errorf("unmount volume %s: %w", e.meta.Name, err)
	}
	return nil
}

// Restore says which containers run and use which volume, by name: all of
// them, from their records. What was mounted for others goes. What should be
// mounted for these and is not is left to the next Mount: a mount that came
// only now would not be seen in a container that runs. All volumes are gone
// through; the errors are joined.
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

// mountsBelow lists the mount points at and below path, the deepest first.
func mountsBelow(path string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range infos {
		out = append(out, m.Mountpoint)
	}
	// Those that were mounted later are on top of, or below, earlier ones.
	slices.Reverse(out)
	return out, nil
}

// unmountAll takes away all mounts at and below path. They are detached: a
// file that somebody still has open does not keep the mount from going.
func unmountAll(path string) error {
	below, err := mountsBelow(path)
	if err != nil {
		return err
	}
	for _, m := range below {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return nil
}
