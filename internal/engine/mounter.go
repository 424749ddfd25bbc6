// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"

	"holdfast/internal/beneath"
	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/shim/proto"
)

// source is a mount together with its source: a path of the host, or a part of a
// volume or image. A path in a volume can be changed by every container that has
// the volume, and a path in an image was chosen by the image's author, so neither
// can be trusted. Such a part is represented by tree, a detached mount of it.
type source struct {
	oci.Mount
	tree *os.File
}

// mounter mounts on the host what a container uses.
type mounter struct {
	store   Store
	images  Images
	volumes Volumes
}

// closeTrees closes the detached mounts. The callers of bindSources must call it.
func closeTrees(sources []source) {
	for _, s := range sources {
		if s.tree != nil {
			s.tree.Close()
		}
	}
}

func ociMounts(sources []source) []oci.Mount {
	out := make([]oci.Mount, 0, len(sources))
	for _, s := range sources {
		out = append(out, s.Mount)
	}
	return out
}

// bindSources mounts the volumes of a container and returns the sources of its
// mounts. It creates missing sources that were given by -v.
func (mt *mounter) bindSources(ctx context.Context, id string, mounts []mountPoint) (out []source, err error) {
	defer func() {
		if err != nil {
			closeTrees(out)
			out = nil
		}
	}()
	for _, m := range mounts {
		o := source{Mount: oci.Mount{
			Source: m.Source, Destination: m.Destination, Type: m.Type, RW: m.RW,
			Propagation: m.Propagation, PropagationIfShared: true,
		}}
		if b := m.BindOptions; b != nil {
			o.PropagationIfShared = b.Propagation == ""
			o.NonRecursive, o.ReadOnlyNonRecursive, o.ReadOnlyForceRecursive = b.NonRecursive, b.ReadOnlyNonRecursive, b.ReadOnlyForceRecursive
		}
		switch m.Type {
		case mount.TypeVolume:
			if o.Source, err = mt.volumes.Mount(ctx, m.Name, id); err != nil {
				return out, err
			}
			if m.Subpath != "" || m.Destination == devices {
				if o.tree, err = mt.volumes.Subtree(m.Name, cmp.Or(m.Subpath, ".")); err != nil {
					return out, err
				}
			}
		case mount.TypeImage:
			i := m.Image
			if o.tree, err = mt.images.Tree(ctx, i.Snapshot, i.Storage, mt.store.ContainerDir(id), cmp.Or(m.Subpath, ".")); err != nil {
				return out, fmt.Errorf("mount image %s: %w", m.Name, err)
			}
		case mount.TypeTmpfs:
			if o.Options, err = oci.TmpfsOptions(m.Tmpfs, !m.RW); err != nil {
				return out, err
			}
		case mount.TypeBind:
			_, err := os.Stat(m.Source)
			if errors.Is(err, fs.ErrNotExist) && m.Create {
				err = os.MkdirAll(m.Source, 0o755)
			}
			if err != nil {
				return out, errs.Invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
			}
		}
		out = append(out, o)
	}
	return out, nil
}

// subpathsDir is the folder in which the parts of volumes and images that a container
// uses are mounted. They stay mounted for the whole life, because the OCI runtime
// needs them at each run, also at those that the shim starts.
func (mt *mounter) subpathsDir(id string) string {
	return filepath.Join(mt.store.RunDir(id), "subpaths")
}

// placeTrees attaches the detached mounts in the container's run directory, to which
// only root has access, and sets these paths as the mounts' sources. It returns the
// paths.
func (mt *mounter) placeTrees(id string, sources []source) (places []string, err error) {
	for i := range sources {
		tree := sources[i].tree
		if tree == nil {
			continue
		}
		dir := mt.subpathsDir(id)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		place := filepath.Join(dir, strconv.Itoa(i))
		if err := placeTree(tree, place); err != nil {
			return nil, fmt.Errorf("mount a part of a volume or image at %s: %w", place, err)
		}
		if sources[i].Destination == devices && sources[i].Type == mount.TypeVolume {
			if err := placeNull(place); err != nil {
				return nil, fmt.Errorf("give the volume at %s a null device: %w", devices, err)
			}
		}
		sources[i].Source = place
		places = append(places, place)
		failpoint.Here("launch.placed-subpath")
	}
	return places, nil
}

// placeTree attaches a detached mount at a path.
func placeTree(tree *os.File, place string) error {
	st, err := tree.Stat()
	if err != nil {
		return err
	}
	if st.IsDir() {
		err = os.Mkdir(place, 0o700)
	} else {
		err = os.WriteFile(place, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	// If it were a peer of the host's mount, unmounting it would also unmount what
	// the host has mounted below.
	return os.NewSyscallError("mount", unix.Mount("", place, "", unix.MS_SLAVE|unix.MS_REC, ""))
}

// devices is where the OCI runtime creates the default devices, unless something else
// is mounted there.
const devices = "/dev"

// placeNull mounts the host's null device as null in a folder that will be a
// container's /dev. OCI runtimes mask files of /proc by a bind mount of the
// container's /dev/null. If a volume is mounted at /dev, the image or another
// container that has the volume decides what /dev/null is: with a symbolic link to
// a file of /proc that file would become writable in place of the masked one
// (CVE-2025-31133 of runc), and without /dev/null nothing would be masked. The
// container can't remove this mount.
func placeNull(place string) error {
	const name, mode = "null", unix.S_IFCHR | 0o666
	dir, err := beneath.Root(place)
	if err != nil {
		return err
	}
	defer dir.Close()
	null := unix.Mkdev(1, 3) // Documentation/admin-guide/devices.txt
	is := func(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == null }
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || !is(&st) {
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && err != unix.ENOENT {
			return os.NewSyscallError("unlink", err)
		}
		if err := unix.Mknodat(int(dir.Fd()), name, mode, int(null)); err != nil {
			return os.NewSyscallError("mknod", err)
		}
	}
	at, err := beneath.Open(dir, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer at.Close()
	// A container that has the volume may have replaced the file meanwhile.
	if err := unix.Fstat(int(at.Fd()), &st); err != nil || !is(&st) {
		return fmt.Errorf("%s is not the null device", name)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, os.DevNull, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// mountedSubpaths returns the existing paths that placeTrees created, found by their
// names.
func (mt *mounter) mountedSubpaths(id string) ([]string, error) {
	dir := mt.subpathsDir(id)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	places := make([]string, 0, len(entries))
	for _, entry := range entries {
		places = append(places, filepath.Join(dir, entry.Name()))
	}
	return places, err
}

// shmPath is where a shareable /dev/shm is mounted.
func (mt *mounter) shmPath(id string) string { return filepath.Join(mt.store.RunDir(id), "shm") }

// hostShm is the host's /dev/shm.
const hostShm = "/dev/shm"

// shm mounts the /dev/shm of a container with shareable IPC on the host, so that
// other containers can join it. A private one exists only in the container's own
// mount namespace.
func (mt *mounter) shm(req request, in *oci.Input) error {
	switch h := req.HostConfig; {
	case h.IpcMode.IsHost():
		in.ShmPath = hostShm
	case h.IpcMode.IsShareable():
		path := mt.shmPath(in.ID)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := syscall.Mount("shm", path, "tmpfs", syscall.MS_NOEXEC|syscall.MS_NOSUID|syscall.MS_NODEV, fmt.Sprintf("mode=1777,size=%d", h.ShmSize)); err != nil {
			return fmt.Errorf("mount /dev/shm: %w", err)
		}
		in.ShmPath = path
	}
	return nil
}

// remountRootfs mounts the root file system of a container without processes, if it
// is not mounted any more. It must not run while the container does, whose own mount
// namespace has the file system: two mounts would have the same writable layer.
func (mt *mounter) remountRootfs(ctx context.Context, spec container.Spec) error {
	if mt.rootfsMounted(spec.ID) {
		return nil
	}
	rootfs := mt.store.Rootfs(spec.ID)
	return mt.images.MountRootfs(ctx, spec.Image.Snapshot, spec.Image.Storage, mt.store.ContainerDir(spec.ID), rootfs, false)
}

// rootfsMounted reports whether the root file system of a container is mounted, which
// another program may have changed.
func (mt *mounter) rootfsMounted(id string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, mt.store.Rootfs(id), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// unmount unmounts what the engine has mounted for a container's life. It is
// idempotent.
func (mt *mounter) unmount(id string) error {
	subpaths, err := mt.mountedSubpaths(id)
	if err != nil {
		return err
	}
	paths := append(subpaths, mt.store.Rootfs(id), mt.shmPath(id))
	for _, kind := range proto.JoinedKinds {
		paths = append(paths, proto.JoinedPath(mt.store.RunDir(id), kind))
	}
	for _, path := range paths {
		if err := mt.images.UnmountRootfs(path); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}

// clearRun unmounts and removes a run directory. It removes nothing while
// something is still mounted there.
func (mt *mounter) clearRun(id string) error {
	if err := mt.unmount(id); err != nil {
		return err
	}
	return mt.store.RemoveRunDir(id)
}
