package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"holdfast/internal/archive"
	"holdfast/internal/container"
)

// ExtractOptions are the arguments of PUT /containers/{id}/archive.
type ExtractOptions struct {
	NoOverwriteDirNonDir bool
	CopyUIDGID           bool // what is unpacked is owned by the container's user
}

// ContainerStatPath tells about a path in a container.
func (e *Engine) ContainerStatPath(ctx context.Context, ref, path string) (st moby.PathStat, err error) {
	err = e.withFiles(ctx, ref, path, func(_ *actor, root *archive.Root) (err error) {
		st, err = root.Stat(path)
		return err
	})
	return st, err
}

// ContainerArchive writes what is at a path in a container as tar. begin is
// called once that is known, and gives where to write to.
func (e *Engine) ContainerArchive(ctx context.Context, ref, path string, begin func(moby.PathStat) io.Writer) error {
	return e.withFiles(ctx, ref, path, func(a *actor, root *archive.Root) error {
		if err := root.Pack(ctx, path, begin); err != nil {
			return err
		}
		a.emit("archive-path", nil)
		return nil
	})
}

// ContainerExtract unpacks a tar into a folder in a container.
func (e *Engine) ContainerExtract(ctx context.Context, ref, path string, o ExtractOptions, src io.Reader) error {
	return e.withFiles(ctx, ref, path, func(a *actor, root *archive.Root) error {
		v := a.view.Load()
		readonly, err := root.ReadOnly(path)
		if errors.Is(err, unix.ENOTDIR) {
			return invalid("extraction point is not a directory")
		}
		if err != nil {
			return err
		}
		if readonly {
			if slices.ContainsFunc(v.mounts, func(m mountPoint) bool { return !m.RW && within(filepath.Clean("/"+path), m.Destination) }) {
				return invalid("mounted volume is marked read-only")
			}
			return invalid("container rootfs is marked read-only")
		}
		uo := archive.UnpackOptions{KeepKind: o.NoOverwriteDirNonDir}
		if o.CopyUIDGID && v.req.Config.User != "" {
			if uo.Owner, err = ownerIn(root, v.req.Config.User); err != nil {
				return err
			}
		}
		if err := root.Unpack(ctx, path, src, uo); err != nil {
			return err
		}
		a.emit("extract-to-dir", nil)
		return nil
	})
}

// ownerIn finds a user by the files in a tree. Without them numbers are enough.
func ownerIn(root *archive.Root, spec string) (*archive.Owner, error) {
	var files [2]io.Reader
	for i, path := range []string{"/etc/passwd", "/etc/group"} {
		f, err := root.Open(path)
		if err != nil {
			continue
		}
		defer f.Close()
		files[i] = f
	}
	u, err := user.GetExecUser(spec, nil, files[0], files[1])
	if err != nil {
		return nil, invalid("%v", err)
	}
	return &archive.Owner{UID: u.Uid, GID: u.Gid}, nil
}

// withFiles lends a container's files to fn: as it sees them while it runs, and
// mounted for fn alone else. What fn says of a path that isn't there becomes
// Docker's sentence.
func (e *Engine) withFiles(ctx context.Context, ref, path string, fn func(*actor, *archive.Root) error) error {
	err := e.lend(ctx, ref, func(a *actor, v *view) error {
		root, closeRoot, err := e.openFiles(ctx, v)
		if err != nil {
			return err
		}
		defer closeRoot()
		return fn(a, root)
	})
	var at *os.PathError
	switch {
	case errors.Is(err, unix.ENOENT):
		return notFound("Could not find the file %s in container %s", path, ref)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.As(err, &at) && errors.Is(err, os.ErrInvalid):
		return invalid("%s in container %s: %v", path, ref, err)
	case errors.Is(err, os.ErrPermission):
		return forbidden("%s in container %s: %v", path, ref, err)
	}
	return err
}

// lentAgainst reports whether an input waits until nobody works on the files,
// in the loop: a root file system is mounted once at a time, and not removed
// under who reads it.
func (a *actor) lentAgainst(in container.Input) bool {
	switch {
	case a.lent == 0:
		return false
	case in == container.AskStart, in == container.AskRemove, in == container.AskForceRemove:
		return true
	}
	return in == container.AskFiles && a.state != container.Running && a.state != container.Paused
}

// borrow waits until the container's files may be used, and keeps them from
// being mounted anew or removed until giveBack is called.
func (a *actor) borrow(ctx context.Context) (giveBack func(), err error) {
	lent := false // the loop's
	giveBack = func() {
		a.post(func() {
			if !lent {
				return
			}
			if lent = false; a.lent > 0 {
				a.lent--
			}
			a.unpark()
		})
	}
	err = a.ask(ctx, container.AskFiles, func(_ container.Action, done func(error)) {
		lent = true
		a.lent++
		done(nil)
	})
	if err != nil {
		giveBack() // who left may have got it all the same
	}
	return giveBack, err
}

// openFiles opens the file tree of a container that was borrowed.
func (e *Engine) openFiles(ctx context.Context, v *view) (root *archive.Root, closeRoot func(), err error) {
	if v.state == container.Running || v.state == container.Paused {
		root, err := archive.OpenProcess(v.rec.Pid, v.rec.PidStart)
		if isNotFound(err) {
			return nil, nil, conflict("container %s has just ended: try again", v.spec.Name)
		}
		if err != nil {
			return nil, nil, err
		}
		return root, func() { root.Close() }, nil
	}
	if e.observes.Load() {
		return nil, nil, needsDaemon("reading or writing files of a container that does not run")
	}
	dir := e.store.ContainerDir(v.spec.ID)
	rootfs := func(target string) error {
		// Between two runs it is mounted, and stays so.
		return os.NewSyscallError("mount", unix.Mount(e.store.Rootfs(v.spec.ID), target, "", unix.MS_BIND, ""))
	}
	if v.state != container.Restarting {
		if rootfs, err = e.images.RootfsMounter(ctx, v.spec.Image.Snapshot, v.spec.Image.Storage, dir, false); err != nil {
			return nil, nil, err
		}
	}
	// As a user of the volumes of its own.
	as := "files-" + rand.Text()
	letGo := func() {
		for _, m := range v.mounts {
			if m.volume() {
				if err := e.volumes.Unmount(m.Name, as); err != nil {
					e.log.Error("volume not unmounted", "container", v.spec.ID[:12], "volume", m.Name, "error", err)
				}
			}
		}
	}
	bound, err := e.bindSources(ctx, as, v.mounts)
	if err != nil {
		letGo()
		return nil, nil, err
	}
	var mounts []archive.Mount
	for _, m := range bound {
		if m.Type != mount.TypeTmpfs {
			mounts = append(mounts, archive.Mount{Source: m.Source, Destination: m.Destination, ReadOnly: !m.RW, NoRecursion: m.NonRecursive})
		}
	}
	for dest, name := range map[string]string{"/etc/hosts": "hosts", "/etc/resolv.conf": "resolv.conf", "/etc/hostname": "hostname"} {
		source := filepath.Join(dir, name)
		if _, err := os.Lstat(source); err == nil && !slices.ContainsFunc(mounts, func(m archive.Mount) bool { return m.Destination == dest }) {
			mounts = append(mounts, archive.Mount{Source: source, Destination: dest})
		}
	}
	root, err = archive.OpenPrivate(dir, rootfs, v.req.HostConfig.ReadonlyRootfs, mounts)
	if err != nil {
		letGo()
		return nil, nil, err
	}
	return root, func() {
		root.Close()
		letGo()
	}, nil
}

// ContainerExport writes a container's root file system as tar, without what is
// mounted in it. begin is called before the first byte.
func (e *Engine) ContainerExport(ctx context.Context, ref string, begin func() io.Writer) error {
	return e.withRootfs(ctx, ref, func(a *actor, _ *view, root *archive.Root) error {
		if err := root.PackAll(ctx, begin()); err != nil {
			return err
		}
		a.emit("export", nil)
		return nil
	})
}

// ContainerChanges lists what a container changed of its image.
func (e *Engine) ContainerChanges(ctx context.Context, ref string) (changes []moby.FilesystemChange, err error) {
	err = e.withRootfs(ctx, ref, func(_ *actor, v *view, root *archive.Root) (err error) {
		changes, err = e.changes(ctx, v, root)
		return err
	})
	return changes, err
}

// changes compares a container's root file system with its image's.
func (e *Engine) changes(ctx context.Context, v *view, root *archive.Root) ([]moby.FilesystemChange, error) {
	dir, i := e.store.ContainerDir(v.spec.ID), v.spec.Image
	mounter, err := e.images.RootfsMounter(ctx, i.Snapshot, i.Storage, dir, true)
	if err != nil {
		return nil, err
	}
	from, err := archive.OpenPrivate(dir, mounter, false, nil)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	return archive.Changes(ctx, from, root, func(path string) bool { return mountedOn[path] })
}

// mountedOn are the places that the OCI runtime makes where the image lacks
// them, to mount something there. They are no change by the container.
var mountedOn = map[string]bool{
	"/dev": true, "/dev/pts": true, "/dev/shm": true, "/dev/mqueue": true, "/dev/console": true,
	"/proc": true, "/sys": true, "/etc": true, "/etc/hosts": true, "/etc/hostname": true, "/etc/resolv.conf": true,
	"/sbin": true, "/sbin/docker-init": true,
}

// withRootfs lends a container's root file system to fn, as it is on the host:
// without what is mounted in it.
func (e *Engine) withRootfs(ctx context.Context, ref string, fn func(*actor, *view, *archive.Root) error) error {
	return e.lend(ctx, ref, func(a *actor, v *view) error {
		root, err := e.openRootfs(ctx, v)
		if err != nil {
			return err
		}
		defer root.Close()
		return fn(a, v, root)
	})
}

// lend calls fn while the files of a container are borrowed.
func (e *Engine) lend(ctx context.Context, ref string, fn func(*actor, *view) error) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	giveBack, err := a.borrow(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	return fn(a, a.view.Load())
}

// openRootfs opens the root file system of a container that was borrowed.
func (e *Engine) openRootfs(ctx context.Context, v *view) (*archive.Root, error) {
	if v.state.Alive() {
		return archive.OpenFolder(e.store.Rootfs(v.spec.ID))
	}
	dir, i := e.store.ContainerDir(v.spec.ID), v.spec.Image
	mounter, err := e.images.RootfsMounter(ctx, i.Snapshot, i.Storage, dir, false)
	if err != nil {
		return nil, err
	}
	return archive.OpenPrivate(dir, mounter, false, nil)
}
