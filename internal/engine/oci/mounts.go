// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/errs"
)

// Mount is a resolved mount point: a path on the host, or a tmpfs.
type Mount struct {
	Type        mount.Type // mount.TypeTmpfs, or anything else for a bind of Source
	Source      string     // on the host
	Destination string     // in the container
	RW          bool
	Propagation mount.Propagation // empty means rprivate
	// PropagationIfShared uses Propagation only if the source's mount supports it,
	// and otherwise rprivate.
	PropagationIfShared bool

	NonRecursive           bool
	ReadOnlyNonRecursive   bool
	ReadOnlyForceRecursive bool

	// Options are the options of a tmpfs, comma-separated as in HostConfig.Tmpfs.
	Options string
}

// TmpfsMounts converts HostConfig.Tmpfs for Input.Mounts.
func TmpfsMounts(tmpfs map[string]string) []Mount {
	var out []Mount
	for _, dest := range sortedKeys(tmpfs) {
		out = append(out, Mount{Type: mount.TypeTmpfs, Destination: dest, RW: true, Options: tmpfs[dest]})
	}
	return out
}

// systemMounts returns the mounts of every container.
func systemMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777"}},
	}
}

func setMounts(s *specs.Spec, in Input, sec Security) error {
	hc := in.HostConfig
	user := slices.Clone(in.Mounts)
	for i := range user {
		user[i].Destination = path.Clean(user[i].Destination)
	}
	own := func(dest string) bool {
		return slices.ContainsFunc(user, func(m Mount) bool { return m.Destination == dest })
	}
	ownDev := own("/dev")

	writableCgroups := hc.Privileged || in.Defaults.remapped(hc.UsernsMode)
	if sec.WritableCgroups != nil {
		writableCgroups = *sec.WritableCgroups
	}
	for _, m := range systemMounts() {
		if own(m.Destination) || ownDev && strings.HasPrefix(m.Destination, "/dev/") {
			continue // a mount of the user replaces it
		}
		switch m.Destination {
		case "/dev/shm":
			if hc.IpcMode.IsNone() {
				continue
			}
			if shared, err := sharedShm(in); err != nil {
				return err
			} else if shared != "" {
				m = specs.Mount{Destination: m.Destination, Type: "bind", Source: shared, Options: []string{"rbind", "rprivate"}}
				break
			}
			size := hc.ShmSize
			if size <= 0 {
				size = DefaultShmSize
			}
			m.Options = append(m.Options, "size="+strconv.FormatInt(size, 10))
		case "/dev/mqueue":
			// Only the owner of the IPC namespace can mount mqueue.
			if hc.IpcMode.IsHost() && in.Defaults.remapped(hc.UsernsMode) {
				continue
			}
		case "/sys":
			if hc.Privileged {
				m.Options = without(m.Options, []string{"ro"})
			} else if hc.NetworkMode.IsHost() && in.Defaults.remapped(hc.UsernsMode) {
				// sysfs can only be mounted by the owner of the network namespace.
				m = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
			}
		case "/sys/fs/cgroup":
			if writableCgroups {
				m.Options = without(m.Options, []string{"ro"})
			}
		}
		if s.Root.Readonly && !keepsWriting(m.Destination) && !slices.Contains(m.Options, "ro") &&
			!(m.Destination == "/sys/fs/cgroup" && writableCgroups) && !(m.Destination == "/sys" && hc.Privileged) {
			m.Options = append(m.Options, "ro")
		}
		s.Mounts = append(s.Mounts, m)
	}

	for _, f := range []struct{ source, dest string }{
		{in.Files.Resolv, "/etc/resolv.conf"},
		{in.Files.Hostname, "/etc/hostname"},
		{in.Files.Hosts, "/etc/hosts"},
	} {
		if f.source != "" && !own(f.dest) {
			user = append(user, Mount{Type: mount.TypeBind, Source: f.source, Destination: f.dest, RW: !hc.ReadonlyRootfs, ReadOnlyNonRecursive: true})
		}
	}
	// Parents come before the mounts below them.
	slices.SortStableFunc(user, func(a, b Mount) int { return depth(a.Destination) - depth(b.Destination) })
	for _, m := range user {
		if err := addMount(s, in, m); err != nil {
			return err
		}
	}
	if NeedsInit(hc, in.Defaults) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: initInContainer, Type: "bind", Source: in.InitPath, Options: []string{"bind", "ro"}})
	}

	if !hc.Privileged && !sec.SystemPathsUnconfined {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = hc.MaskedPaths, hc.ReadonlyPaths
		if hc.MaskedPaths == nil {
			s.Linux.MaskedPaths = maskedPaths(in.Host)
		}
		if hc.ReadonlyPaths == nil {
			s.Linux.ReadonlyPaths = readonlyPaths
		}
	}
	return nil
}

// keepsWriting reports whether a system mount stays writable with a read-only
// root.
func keepsWriting(dest string) bool {
	switch dest {
	case "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue":
		return true
	}
	return false
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// sharedShm returns the host's path for /dev/shm, or "" if the container has one
// of its own.
func sharedShm(in Input) (string, error) {
	mode := in.HostConfig.IpcMode
	switch {
	case in.ShmPath != "":
		return in.ShmPath, nil
	case mode.IsHost():
		return "/dev/shm", nil
	case mode.IsContainer():
		return "", errs.Unmet("container %s: ipc mode %s needs the path of that container's /dev/shm", in.ID, mode)
	}
	return "", nil
}

func addMount(s *specs.Spec, in Input, m Mount) error {
	if m.Type == mount.TypeTmpfs {
		opts, err := mergeTmpfs(m.Options)
		if err != nil {
			return err
		}
		if !m.RW && !slices.Contains(opts, "ro") {
			opts = append(opts, "ro")
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: opts})
		return nil
	}

	propagation := m.Propagation
	if propagation == "" {
		propagation = mount.PropagationRPrivate
	}
	if err := propagateRoot(s, in.sys, m.Source, propagation); err != nil {
		if !m.PropagationIfShared {
			return err
		}
		propagation = mount.PropagationRPrivate
	}
	bind := "rbind"
	if m.NonRecursive {
		bind = "bind"
	}
	opts := []string{bind}
	if !m.RW {
		ro := "ro"
		switch {
		case m.ReadOnlyNonRecursive || m.NonRecursive:
		case in.Host.RecursiveReadOnly && !in.NoRecursiveReadOnly:
			ro = "rro"
		case m.ReadOnlyForceRecursive:
			return errs.Unmet("mount %s: this kernel or runtime can't make mounts read-only recursively", m.Destination)
		}
		opts = append(opts, ro)
	}
	s.Mounts = append(s.Mounts, specs.Mount{
		Destination: m.Destination, Type: "bind", Source: m.Source,
		Options: append(opts, string(propagation)),
	})
	return nil
}

// propagateRoot makes sure that mount events can propagate: from the source,
// which must be on a shared (or slave) mount, and through the container's root,
// which the runtime would otherwise make private.
func propagateRoot(s *specs.Spec, sys system, source string, p mount.Propagation) error {
	var needs, root string
	switch p {
	case mount.PropagationShared, mount.PropagationRShared:
		needs, root = "shared", "shared"
	case mount.PropagationSlave, mount.PropagationRSlave:
		needs, root = "shared or slave", "rslave"
	default:
		return nil
	}
	point, optional, err := sys.mount(source)
	if err != nil {
		return errs.Invalid("mount %s: %v", source, err)
	}
	ok := false
	for _, tag := range strings.Fields(optional) {
		ok = ok || strings.HasPrefix(tag, "shared:") || root == "rslave" && strings.HasPrefix(tag, "master:")
	}
	if !ok {
		return errs.Invalid("path %s is mounted on %s but it is not a %s mount", source, point, needs)
	}
	if s.Linux.RootfsPropagation != "shared" {
		s.Linux.RootfsPropagation = root
	}
	return nil
}

// mount returns the mount point of the mount that a path is on, and its optional
// fields (proc_pid_mountinfo(5)).
func (s system) mount(p string) (point, optional string, err error) {
	if s.mountOf != nil {
		return s.mountOf(p)
	}
	infos, err := mountinfo.GetMounts(mountinfo.ParentsFilter(p))
	if err != nil {
		return "", "", err
	}
	for _, i := range infos {
		// The longest mount point wins. Of two mounts on one point the later one
		// wins, which hides the other.
		if len(i.Mountpoint) >= len(point) {
			point, optional = i.Mountpoint, i.Optional
		}
	}
	if point == "" {
		return "", "", errs.Invalid("can't find its mount point")
	}
	return point, optional, nil
}
