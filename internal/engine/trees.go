// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"holdfast/internal/archive"
	"holdfast/internal/container"
	"holdfast/internal/errs"
)

// ExtractOptions are the arguments of PUT /containers/{id}/archive.
type ExtractOptions struct {
	NoOverwriteDirNonDir bool
	CopyUIDGID           bool // the container's user owns the unpacked files
}

// trees gives access to the files of containers: to copy, export, compare and commit
// them. While the files are in use, the container is not removed and a start waits.
type trees struct {
	*progress
	store   Store
	images  Images
	index   *index
	journal *journal
	mounter *mounter
	log     *slog.Logger
}

// ContainerStatPath returns information about a path in a container.
func (t *trees) ContainerStatPath(ctx context.Context, ref, path string) (st moby.PathStat, err error) {
	err = t.withFiles(ctx, ref, path, func(_ *actor, root *archive.Root) (err error) {
		st, err = root.Stat(path)
		return err
	})
	return st, err
}

// ContainerArchive writes a file or folder of a container as tar. begin is called once
// the path is resolved, and returns the writer.
func (t *trees) ContainerArchive(ctx context.Context, ref, path string, begin func(moby.PathStat) io.Writer) error {
	return t.withFiles(ctx, ref, path, func(a *actor, root *archive.Root) error {
		if err := root.Pack(ctx, path, begin); err != nil {
			return err
		}
		a.emit("archive-path", nil)
		return nil
	})
}

// ContainerExtract unpacks a tar into a folder in a container.
func (t *trees) ContainerExtract(ctx context.Context, ref, path string, o ExtractOptions, src io.Reader) error {
	return t.withFiles(ctx, ref, path, func(a *actor, root *archive.Root) error {
		v := a.view.Load()
		readonly, err := root.ReadOnly(path)
		if errors.Is(err, unix.ENOTDIR) {
			return errs.Invalid("extraction point is not a directory")
		}
		if err != nil {
			return err
		}
		if readonly {
			if slices.ContainsFunc(v.mounts, func(m mountPoint) bool { return !m.RW && within(filepath.Clean("/"+path), m.Destination) }) {
				return errs.Invalid("mounted volume is marked read-only")
			}
			return errs.Invalid("container rootfs is marked read-only")
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

// ownerIn resolves a user and group with the tree's /etc/passwd and /etc/group. If
// these files are missing, spec must be numeric.
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
		return nil, errs.Invalid("%v", err)
	}
	return &archive.Owner{UID: u.Uid, GID: u.Gid}, nil
}

// withFiles calls fn with a container's files: as the container's process sees them
// while it runs, and otherwise in a private mount. fn's error about a path is
// converted to Docker's message.
func (t *trees) withFiles(ctx context.Context, ref, path string, fn func(*actor, *archive.Root) error) error {
	use := func() (ended func() bool, err error) {
		err = t.withFileUse(ctx, ref, func(a *actor, v *view) error {
			root, closeRoot, err := t.openFiles(ctx, v)
			if errors.Is(err, errProcessEnded) {
				ended = func() bool { return awaitProcessEnd(ctx, a, v) }
			}
			if err != nil {
				return err
			}
			defer closeRoot()
			return fn(a, root)
		})
		return ended, err
	}
	ended, err := use()
	for ended != nil && ended() {
		// The process had ended and its end was not recorded yet. Now it is, and the
		// files are those of a container that does not run, or of its next run.
		ended, err = use()
	}
	if errors.Is(err, errProcessEnded) {
		return errs.Conflict("container %s has just ended: try again", ref)
	}
	var at *os.PathError
	switch {
	case errors.Is(err, unix.ENOENT):
		return errs.NotFound("Could not find the file %s in container %s", path, ref)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.As(err, &at) && errors.Is(err, os.ErrInvalid):
		return errs.Invalid("%s in container %s: %v", path, ref, err)
	case errors.Is(err, os.ErrPermission):
		return errs.Forbidden("%s in container %s: %v", path, ref, err)
	}
	return err
}

// acquireFiles waits until the container's files may be used. Until release is called,
// they are not mounted by a start and not removed.
func (a *actor) acquireFiles(ctx context.Context) (release func(), err error) {
	acquired := false // accessed by the loop alone
	release = func() {
		a.post(func() {
			if !acquired {
				return
			}
			acquired = false
			a.step(container.SawFilesReturned)
		})
	}
	err = a.ask(ctx, container.AskFiles, func(_ container.Action, done func(error)) {
		acquired = true
		done(nil)
	})
	if err != nil {
		release() // a caller that stopped waiting may have acquired them nevertheless
	}
	return release, err
}

// errProcessEnded is openFiles' error for a process that has ended although the
// view shows it as running.
var errProcessEnded = errors.New("the container's process has just ended")

// processEndTime bounds how long a request waits for the record of an end. A shim
// that was killed takes longest, because a new one has to adopt the container.
const processEndTime = 10 * time.Second

// awaitProcessEnd waits until the end of the process of a view is recorded. It
// returns false if the context ends first, or after processEndTime.
func awaitProcessEnd(ctx context.Context, a *actor, v *view) bool {
	recorded := make(chan struct{})
	var look func()
	look = func() {
		if s := a.phase.State; a.spec.Life == v.spec.Life && a.rec.Pid == v.rec.Pid && (s == container.Running || s == container.Paused) {
			a.parked = append(a.parked, look)
			return
		}
		close(recorded)
	}
	if !a.post(look) {
		return true // the container is removed
	}
	enough := time.NewTimer(processEndTime)
	defer enough.Stop()
	select {
	case <-recorded:
		return true
	case <-a.quit:
		return true
	case <-enough.C:
	case <-ctx.Done():
	}
	return false
}

// openFiles opens the file tree of a container whose files were acquired. It
// returns errProcessEnded for a container that runs no longer.
func (t *trees) openFiles(ctx context.Context, v *view) (root *archive.Root, closeRoot func(), err error) {
	if v.state == container.Running || v.state == container.Paused {
		root, err := archive.OpenProcess(v.rec.Pid, v.rec.PidStart)
		if isNotFound(err) {
			return nil, nil, errProcessEnded
		}
		if err != nil {
			return nil, nil, err
		}
		return root, func() { root.Close() }, nil
	}
	if t.observes.Load() {
		return nil, nil, needsDaemon("reading or writing files of a container that does not run")
	}
	dir := t.store.ContainerDir(v.spec.ID)
	rootfs := func(target string) error {
		// Between two runs the root file system stays mounted.
		return os.NewSyscallError("mount", unix.Mount(t.store.Rootfs(v.spec.ID), target, "", unix.MS_BIND, ""))
	}
	if v.state != container.Restarting {
		if rootfs, err = t.images.RootfsMounter(ctx, v.spec.Image.Snapshot, v.spec.Image.Storage, dir, false); err != nil {
			return nil, nil, err
		}
	}
	// The volumes get a user of their own, so that unmounting them does not affect
	// the container.
	as := "files-" + rand.Text()
	unmountVolumes := func() {
		for _, m := range v.mounts {
			if m.volume() {
				if err := t.mounter.volumes.Unmount(m.Name, as); err != nil {
					t.log.Error("a volume could not be unmounted", "container", v.spec.ID[:12], "volume", m.Name, "error", err)
				}
			}
		}
	}
	bound, err := t.mounter.bindSources(ctx, as, v.mounts)
	if err != nil {
		unmountVolumes()
		return nil, nil, err
	}
	defer closeTrees(bound)
	var mounts []archive.Mount
	for _, m := range bound {
		if m.Type != mount.TypeTmpfs {
			mounts = append(mounts, archive.Mount{Source: m.Source, Tree: m.tree, Destination: m.Destination, ReadOnly: !m.RW, NoRecursion: m.NonRecursive})
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
		unmountVolumes()
		return nil, nil, err
	}
	t.journal.mounts(v.spec.ID, v.mounts)
	return root, func() {
		root.Close()
		unmountVolumes()
		t.journal.unmounts(v.spec.ID, v.mounts)
	}, nil
}

// ContainerExport writes a container's root file system as tar, without mounts. begin
// is called before the first byte is written, and returns the writer.
func (t *trees) ContainerExport(ctx context.Context, ref string, begin func() io.Writer) error {
	return t.withRootfs(ctx, ref, func(a *actor, _ *view, root *archive.Root) error {
		if err := root.PackAll(ctx, begin()); err != nil {
			return err
		}
		a.emit("export", nil)
		return nil
	})
}

// ContainerChanges lists the differences between a container's root file system and
// its image.
func (t *trees) ContainerChanges(ctx context.Context, ref string) (changes []moby.FilesystemChange, err error) {
	err = t.withRootfs(ctx, ref, func(_ *actor, v *view, root *archive.Root) (err error) {
		changes, err = t.changes(ctx, v, root)
		return err
	})
	return changes, err
}

// changes compares a container's root file system with that of its image.
func (t *trees) changes(ctx context.Context, v *view, root *archive.Root) ([]moby.FilesystemChange, error) {
	dir, i := t.store.ContainerDir(v.spec.ID), v.spec.Image
	mounter, err := t.images.RootfsMounter(ctx, i.Snapshot, i.Storage, dir, true)
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

// mountedOn are the mount points that the OCI runtime creates if the image lacks them,
// and the files that every container gets. They do not count as changes by the
// container.
var mountedOn = map[string]bool{
	"/dev": true, "/dev/pts": true, "/dev/shm": true, "/dev/mqueue": true, "/dev/console": true,
	"/proc": true, "/sys": true, "/etc": true, "/etc/hosts": true, "/etc/hostname": true, "/etc/resolv.conf": true,
	"/sbin": true, "/sbin/docker-init": true,
	"/.dockerenv": true, "/etc/mtab": true,
}

// withRootfs calls fn with a container's root file system, without mounts.
func (t *trees) withRootfs(ctx context.Context, ref string, fn func(*actor, *view, *archive.Root) error) error {
	return t.withFileUse(ctx, ref, func(a *actor, v *view) error {
		root, err := t.openRootfs(ctx, v)
		if err != nil {
			return err
		}
		defer root.Close()
		return fn(a, v, root)
	})
}

// withFileUse calls fn while a container's files are acquired.
func (t *trees) withFileUse(ctx context.Context, ref string, fn func(*actor, *view) error) error {
	a, err := t.index.findForChange(ctx, ref)
	if err != nil {
		return err
	}
	release, err := a.acquireFiles(ctx)
	if err != nil {
		return err
	}
	defer release()
	return fn(a, a.view.Load())
}

// openRootfs opens the root file system of a container whose files were acquired.
func (t *trees) openRootfs(ctx context.Context, v *view) (*archive.Root, error) {
	if v.state.Alive() {
		root, err := archive.OpenFolder(t.store.Rootfs(v.spec.ID))
		if err == nil && !t.mounter.rootfsMounted(v.spec.ID) {
			// The folder is empty. It can't be mounted again while the container runs.
			root.Close()
			return nil, errs.Conflict("the root file system of container %s was unmounted by another program: restart the container", v.spec.Name)
		}
		return root, err
	}
	dir, i := t.store.ContainerDir(v.spec.ID), v.spec.Image
	mounter, err := t.images.RootfsMounter(ctx, i.Snapshot, i.Storage, dir, false)
	if err != nil {
		return nil, err
	}
	return archive.OpenPrivate(dir, mounter, false, nil)
}
