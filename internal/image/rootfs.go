// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/beneath"
	"holdfast/internal/errs"
	"holdfast/internal/image/mounts"
)

// Names inside the directory of a container's rootfs. upper and work belong to
// the overlay, fs is the copy of the native driver.
const (
	upperDir = "upper"
	workDir  = "work"
	copyDir  = "fs"
)

// lowerDirs caches the directories of chains of layers.
type lowerDirs struct {
	mu    sync.Mutex
	known map[string][]string // storage/chain → directories, top first
}

func (l *lowerDirs) get(storage, snapshot string) ([]string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	dirs, ok := l.known[storage+"/"+snapshot]
	return dirs, ok
}

func (l *lowerDirs) has(storage, snapshot string) bool {
	_, ok := l.get(storage, snapshot)
	return ok
}

func (l *lowerDirs) put(storage, snapshot string, dirs []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		l.known = map[string][]string{}
	}
	l.known[storage+"/"+snapshot] = dirs
}

func (l *lowerDirs) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = nil
}

// rootfs makes and mounts the root file systems of containers.
type rootfs struct {
	env
	layers   *layers
	pins     *pins
	requests *requests
}

// PrepareRootfs prepares in dir, which it creates, the rootfs of a container of
// img so that it can be mounted: an empty writable layer for overlayfs, a copy
// of the image for native. It is idempotent, also after a crash at any point,
// and never changes data that a container has written.
func (rf *rootfs) PrepareRootfs(ctx context.Context, img Image, dir string) error {
	ctx = rf.ctx(ctx)
	if !filepath.IsAbs(dir) {
		return errs.Invalid("prepare rootfs: %q is not an absolute path", dir)
	}
	if err := os.MkdirAll(dir, 0o710); err != nil {
		return fmt.Errorf("prepare rootfs: %w", err)
	}
	lowers, err := rf.pinnedLayers(ctx, img, dir)
	if err != nil {
		return fmt.Errorf("prepare rootfs of %s: %w", img.Ref, err)
	}
	if img.Storage == Native {
		err = copyRootfs(dir, lowers)
	} else {
		err = makeUpper(dir, lowers)
	}
	if err != nil {
		return fmt.Errorf("prepare rootfs of %s: %w", img.Ref, err)
	}
	return nil
}

// makeUpper makes the writable layer of an overlay. Its root becomes the
// container's root directory, so it takes owner and mode from the layer below.
func makeUpper(dir string, lowers []string) error {
	if err := mkdir(filepath.Join(dir, workDir), 0o700); err != nil {
		return err
	}
	upper := filepath.Join(dir, upperDir)
	if _, err := os.Lstat(upper); err == nil {
		return nil
	}
	// The directory is completed under another name and then renamed, so an
	// upper that exists is complete.
	made := filepath.Join(dir, upperDir+".new")
	if err := mkdir(made, 0o755); err != nil {
		return err
	}
	mode, uid, gid := uint32(0o755), 0, 0
	if len(lowers) > 0 {
		var st unix.Stat_t
		if err := unix.Stat(lowers[0], &st); err != nil {
			return fmt.Errorf("layer %s: %w", lowers[0], err)
		}
		mode, uid, gid = st.Mode&0o7777, int(st.Uid), int(st.Gid)
	}
	if uid != 0 || gid != 0 || os.Geteuid() != 0 {
		if err := os.Lchown(made, uid, gid); err != nil {
			return err
		}
	}
	if err := unix.Chmod(made, mode); err != nil {
		return &os.PathError{Op: "chmod", Path: made, Err: err}
	}
	return os.Rename(made, upper)
}

func copyRootfs(dir string, lowers []string) error {
	to := filepath.Join(dir, copyDir)
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	made := to + ".new"
	if err := os.RemoveAll(made); err != nil { // an incomplete copy
		return err
	}
	if err := mkdir(made, 0o755); err != nil {
		return err
	}
	if len(lowers) > 0 {
		if err := fs.CopyDir(made, lowers[0], fs.WithAllowXAttrErrors()); err != nil {
			return err
		}
		// A copy that has its name is complete, also after a loss of power.
		if err := syncTree(made); err != nil {
			return err
		}
	}
	return os.Rename(made, to)
}

func mkdir(path string, mode os.FileMode) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// lowerDirs finds the directories of a chain, the top layer's first. Native
// has one directory for a whole chain.
func (ly *layers) lowerDirs(ctx context.Context, storage, snapshot string) ([]string, error) {
	if snapshot == "" {
		return nil, nil
	}
	if dirs, ok := ly.lowers.get(storage, snapshot); ok {
		return dirs, nil
	}
	sn, err := ly.snapshotter(storage)
	if err != nil {
		return nil, err
	}
	find := overlayDirs
	if storage == Native {
		find = ly.nativeDir
	}
	dirs, err := find(ctx, sn, snapshot)
	if err != nil {
		return nil, err
	}
	ly.lowers.put(storage, snapshot, dirs)
	return dirs, nil
}

func overlayDirs(ctx context.Context, sn snapshots.Snapshotter, snapshot string) ([]string, error) {
	var dirs []string
	for key := snapshot; key != ""; {
		info, err := sn.Stat(ctx, key)
		if err != nil {
			return nil, err
		}
		dir := info.Labels[upperdirLabel]
		if dir == "" {
			return nil, fmt.Errorf("snapshot %s has no label with its directory", key)
		}
		dirs = append(dirs, dir)
		key = info.Parent
	}
	return dirs, nil
}

// nativeDir finds a layer's directory by a temporary view, which costs a
// transaction.
func (ly *layers) nativeDir(ctx context.Context, sn snapshots.Snapshotter, snapshot string) (dirs []string, err error) {
	err = ly.leasing.withLease(ctx, func(ctx context.Context) error {
		if _, err := sn.Stat(ctx, snapshot); err != nil {
			return err
		}
		key := "where-" + snapshot
		if err := ly.blobs.Lock(ctx, key); err != nil {
			return err
		}
		defer ly.blobs.Unlock(key)
		if err := sn.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		view, err := sn.View(ctx, key, snapshot)
		if err != nil {
			return err
		}
		if len(view) != 1 {
			return fmt.Errorf("snapshot %s has %d mounts instead of one", snapshot, len(view))
		}
		dirs = []string{view[0].Source}
		return sn.Remove(ctx, key)
	})
	return dirs, err
}

// MountRootfs mounts the rootfs that PrepareRootfs prepared in dir at target,
// which it creates. snapshot and storage are the container's own, whatever the
// store's driver is now. With readonly only the image is mounted, without a
// writable layer. If target is mounted already it stays so.
//
// Unless the mount is read-only, the mount points that the OCI runtime needs in
// every container exist afterwards and are no links, whatever the image or the
// container has put in their place: see makePlaces.
func (rf *rootfs) MountRootfs(ctx context.Context, snapshot, storage, dir, target string, readonly bool) error {
	ctx = rf.ctx(ctx)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("mount rootfs: %w", err)
	}
	mounted, err := mounts.Mounted(target)
	if err != nil {
		return err
	}
	if mounted {
		if readonly {
			return nil
		}
		return rf.makePlaces(ctx, snapshot, storage, dir, target)
	}
	// A container of an earlier start already has a pin. This renews a lost
	// one.
	if err := rf.pins.add(storage, snapshot, dir); err != nil {
		return err
	}
	lowers, err := rf.layers.lowerDirs(ctx, storage, snapshot)
	if err != nil {
		return fmt.Errorf("mount rootfs: layers of %s: %w", snapshot, err)
	}
	if err := rf.mount(storage, lowers, dir, target, readonly, mounts.Overlay.Mount); err != nil {
		return fmt.Errorf("mount rootfs at %s: %w", target, err)
	}
	if readonly {
		return nil
	}
	return rf.makePlaces(ctx, snapshot, storage, dir, target)
}

// RootfsMounter is MountRootfs in two steps: it prepares everything but the
// mount, and returns a function that mounts. The function must be called on a
// thread with its own mount namespace and working directory. Unless readonly is
// set the rootfs must not be mounted anywhere else.
func (rf *rootfs) RootfsMounter(ctx context.Context, snapshot, storage, dir string, readonly bool) (func(target string) error, error) {
	ctx = rf.ctx(ctx)
	if err := rf.pins.add(storage, snapshot, dir); err != nil {
		return nil, err
	}
	lowers, err := rf.layers.lowerDirs(ctx, storage, snapshot)
	if err != nil {
		return nil, fmt.Errorf("mount rootfs: layers of %s: %w", snapshot, err)
	}
	return func(target string) error {
		if err := rf.mount(storage, lowers, dir, target, readonly, mounts.Overlay.MountHere); err != nil {
			return fmt.Errorf("mount rootfs at %s: %w", target, err)
		}
		return nil
	}, nil
}

func (rf *rootfs) mount(storage string, lowers []string, dir, target string, readonly bool, overlay func(mounts.Overlay, string) error) error {
	if storage == Native {
		from := filepath.Join(dir, copyDir)
		if readonly && len(lowers) > 0 {
			from = lowers[0]
		}
		return mounts.Bind(from, target, readonly)
	}
	if len(lowers) == 0 {
		empty, err := rf.emptyLayer()
		if err != nil {
			return err
		}
		lowers = []string{empty}
	}
	switch {
	case readonly && len(lowers) == 1:
		return mounts.Bind(lowers[0], target, true)
	case readonly:
		return overlay(mounts.Overlay{Lowers: lowers}, target)
	}
	return overlay(mounts.Overlay{
		Lowers: lowers,
		Upper:  filepath.Join(dir, upperDir),
		Work:   filepath.Join(dir, workDir),
	}, target)
}

// emptyLayer returns an empty directory.
func (rf *rootfs) emptyLayer() (string, error) {
	empty := rf.path("snapshots", "empty")
	return empty, mkdir(empty, 0o755)
}

// UnmountRootfs undoes MountRootfs. If nothing is mounted it succeeds.
func (rf *rootfs) UnmountRootfs(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil: // another mount may lie below
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EINTR):
		default:
			return fmt.Errorf("unmount rootfs: %w", &os.PathError{Op: "umount", Path: target, Err: err})
		}
	}
}

// RemoveRootfs removes the files that PrepareRootfs made in dir, and dir itself
// if it is then empty. It is idempotent. It refuses while something is mounted
// below dir, because it would delete the files of that mount.
func (rf *rootfs) RemoveRootfs(ctx context.Context, dir string) error {
	if below, err := mountsBelow(dir); err != nil {
		return fmt.Errorf("remove rootfs: %w", err)
	} else if len(below) > 0 {
		return errs.Conflict("remove rootfs: %s is still mounted", below[0])
	}
	for _, name := range []string{upperDir, upperDir + ".new", workDir, copyDir, copyDir + ".new"} {
		if err := removeAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove rootfs: %w", err)
		}
	}
	released, err := rf.pins.drop(dir)
	if err != nil {
		return err
	}
	if len(released) > 0 {
		rf.requests.released(released)
	}
	err = os.Remove(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("remove rootfs: %w", err)
	}
	return nil
}

// removeAll is os.RemoveAll that also removes files that a container has marked
// immutable or append-only.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if err := clearFlags(path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// RootfsUsage returns how many bytes on disk the container has written.
func (rf *rootfs) RootfsUsage(dir string) (int64, error) {
	ctx := rf.ctx(context.Background())
	if size, err := LayerUsage(dir); !errors.Is(err, os.ErrNotExist) {
		return size, err
	}
	copied := filepath.Join(dir, copyDir)
	if _, err := os.Lstat(copied); err != nil {
		return 0, fmt.Errorf("usage of rootfs: %w", err)
	}
	pinned, ok := rf.pins.of(dir)
	if !ok {
		return beneath.Usage(ctx, copied, "")
	}
	lowers, err := rf.layers.lowerDirs(ctx, pinned.storage, pinned.snapshot)
	if err != nil {
		return 0, fmt.Errorf("usage of rootfs: %w", err)
	}
	base := ""
	if len(lowers) > 0 {
		base = lowers[0]
	}
	size, err := beneath.Usage(ctx, copied, base)
	if err != nil {
		return 0, fmt.Errorf("usage of rootfs: %w", err)
	}
	return size, nil
}

// mountsBelow lists the mount points at or below dir, deepest first.
func mountsBelow(dir string) ([]string, error) {
	found, err := mounts.Points(func(at string) bool {
		return at == dir || strings.HasPrefix(at, dir+"/")
	})
	slices.Reverse(found)
	return found, err
}
