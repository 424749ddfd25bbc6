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
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"holdfast/internal/image/mounts"
)

// Names inside the directory of a container's rootfs. upper and work are the
// overlay's, fs is the copy of the native driver.
const (
	upperDir = "upper"
	workDir  = "work"
	copyDir  = "fs"
)

// lowerDirs remembers which directories a chain of layers is made of.
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

// PrepareRootfs makes in dir, which it creates, what a container of img needs
// to be mounted: an empty writable layer for overlayfs, a copy of the image
// for native. It may be repeated, also after a crash at any point, and never
// changes what a container has written.
func (s *Store) PrepareRootfs(ctx context.Context, img Image, dir string) error {
	ctx = s.ctx(ctx)
	if !filepath.IsAbs(dir) {
		return errInvalid("prepare rootfs: %q is not an absolute path", dir)
	}
	if err := os.MkdirAll(dir, 0o710); err != nil {
		return fmt.Errorf("prepare rootfs: %w", err)
	}
	// The hold comes before the look at the layers: see holds.mu.
	if err := s.holds.add(img.Storage, img.Snapshot, dir); err != nil {
		return err
	}
	lowers, err := s.lowerDirs(ctx, img.Storage, img.Snapshot)
	if errdefs.IsNotFound(err) {
		// Not unpacked for this driver, or removed since img was resolved.
		if err = s.unpackManifest(ctx, digest.Digest(img.Manifest), img.Storage); err == nil {
			lowers, err = s.lowerDirs(ctx, img.Storage, img.Snapshot)
		}
	}
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

// makeUpper makes the writable layer of an overlay. Its root shows through as
// the container's root directory, so it takes owner and mode from below.
func makeUpper(dir string, lowers []string) error {
	if err := mkdir(filepath.Join(dir, workDir), 0o700); err != nil {
		return err
	}
	upper := filepath.Join(dir, upperDir)
	if _, err := os.Lstat(upper); err == nil {
		return nil
	}
	// Made whole under another name: an upper that exists is complete.
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
	if err := os.RemoveAll(made); err != nil { // half a copy
		return err
	}
	if err := mkdir(made, 0o755); err != nil {
		return err
	}
	if len(lowers) > 0 {
		if err := fs.CopyDir(made, lowers[0], fs.WithAllowXAttrErrors()); err != nil {
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
func (s *Store) lowerDirs(ctx context.Context, storage, snapshot string) ([]string, error) {
	if snapshot == "" {
		return nil, nil
	}
	if dirs, ok := s.lowers.get(storage, snapshot); ok {
		return dirs, nil
	}
	sn, err := s.snapshotter(storage)
	if err != nil {
		return nil, err
	}
	find := overlayDirs
	if storage == Native {
		find = s.nativeDir
	}
	dirs, err := find(ctx, sn, snapshot)
	if err != nil {
		return nil, err
	}
	s.lowers.put(storage, snapshot, dirs)
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
			return nil, fmt.Errorf("snapshot %s does not tell its directory", key)
		}
		dirs = append(dirs, dir)
		key = info.Parent
	}
	return dirs, nil
}

// nativeDir learns a layer's directory from a view, which costs a transaction
// and leaves nothing.
func (s *Store) nativeDir(ctx context.Context, sn snapshots.Snapshotter, snapshot string) (dirs []string, err error) {
	err = s.withLease(ctx, func(ctx context.Context) error {
		if _, err := sn.Stat(ctx, snapshot); err != nil {
			return err
		}
		key := "where-" + snapshot
		if err := s.blobs.Lock(ctx, key); err != nil {
			return err
		}
		defer s.blobs.Unlock(key)
		if err := sn.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		view, err := sn.View(ctx, key, snapshot)
		if err != nil {
			return err
		}
		if len(view) != 1 {
			return fmt.Errorf("snapshot %s does not tell its directory", snapshot)
		}
		dirs = []string{view[0].Source}
		return sn.Remove(ctx, key)
	})
	return dirs, err
}

// MountRootfs mounts at target, which it creates, the rootfs that
// PrepareRootfs made in dir. snapshot and storage are the container's own,
// whatever the store's driver is now. With readonly there is no writable layer:
// only the image is mounted. A target that is mounted already stays so.
func (s *Store) MountRootfs(ctx context.Context, snapshot, storage, dir, target string, readonly bool) error {
	ctx = s.ctx(ctx)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("mount rootfs: %w", err)
	}
	if mounted, err := mounts.Mounted(target); err != nil || mounted {
		return err
	}
	// A container of an older start has a hold already; this renews a lost one.
	if err := s.holds.add(storage, snapshot, dir); err != nil {
		return err
	}
	lowers, err := s.lowerDirs(ctx, storage, snapshot)
	if err != nil {
		return fmt.Errorf("mount rootfs: layers of %s: %w", snapshot, err)
	}
	if err := s.mount(storage, lowers, dir, target, readonly, mounts.Overlay.Mount); err != nil {
		return fmt.Errorf("mount rootfs at %s: %w", target, err)
	}
	return nil
}

// RootfsMounter is MountRootfs for a thread that has a mount namespace and a
// working directory of its own, on which the function is called: all but the
// mount is done before. If it is not read-only nothing else may have the rootfs
// mounted.
func (s *Store) RootfsMounter(ctx context.Context, snapshot, storage, dir string, readonly bool) (func(target string) error, error) {
	ctx = s.ctx(ctx)
	if err := s.holds.add(storage, snapshot, dir); err != nil {
		return nil, err
	}
	lowers, err := s.lowerDirs(ctx, storage, snapshot)
	if err != nil {
		return nil, fmt.Errorf("mount rootfs: layers of %s: %w", snapshot, err)
	}
	return func(target string) error {
		if err := s.mount(storage, lowers, dir, target, readonly, mounts.Overlay.MountHere); err != nil {
			return fmt.Errorf("mount rootfs at %s: %w", target, err)
		}
		return nil
	}, nil
}

func (s *Store) mount(storage string, lowers []string, dir, target string, readonly bool, overlay func(mounts.Overlay, string) error) error {
	if storage == Native {
		from := filepath.Join(dir, copyDir)
		if readonly && len(lowers) > 0 {
			from = lowers[0]
		}
		return mounts.Bind(from, target, readonly)
	}
	if len(lowers) == 0 {
		empty := s.path("snapshots", "empty")
		if err := mkdir(empty, 0o755); err != nil {
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

// UnmountRootfs undoes MountRootfs; nothing mounted is success.
func (s *Store) UnmountRootfs(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil: // another may lie below
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EINTR):
		default:
			return fmt.Errorf("unmount rootfs: %w", &os.PathError{Op: "umount", Path: target, Err: err})
		}
	}
}

// RemoveRootfs removes what PrepareRootfs made in dir, and dir itself when
// nothing else is in it. It may be repeated. It refuses while something is
// mounted below dir, whose files it would delete.
func (s *Store) RemoveRootfs(ctx context.Context, dir string) error {
	if below, err := mountsBelow(dir); err != nil {
		return fmt.Errorf("remove rootfs: %w", err)
	} else if len(below) > 0 {
		return errConflict("remove rootfs: %s is still mounted", below[0])
	}
	for _, name := range []string{upperDir, upperDir + ".new", workDir, copyDir, copyDir + ".new"} {
		if err := removeAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove rootfs: %w", err)
		}
	}
	released, err := s.holds.drop(dir)
	if err != nil {
		return err
	}
	if len(released) > 0 {
		s.released(released)
	}
	err = os.Remove(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("remove rootfs: %w", err)
	}
	return nil
}

// removeAll is os.RemoveAll that also removes what a container has marked
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

// RootfsUsage is how many bytes on disk the container has written.
func (s *Store) RootfsUsage(dir string) (int64, error) {
	ctx := s.ctx(context.Background())
	if size, err := LayerUsage(dir); !errors.Is(err, os.ErrNotExist) {
		return size, err
	}
	copied := filepath.Join(dir, copyDir)
	if _, err := os.Lstat(copied); err != nil {
		return 0, fmt.Errorf("usage of rootfs: %w", err)
	}
	held, ok := s.holds.of(dir)
	if !ok {
		u, err := fs.DiskUsage(ctx, copied)
		return u.Size, err
	}
	lowers, err := s.lowerDirs(ctx, held.storage, held.snapshot)
	if err != nil {
		return 0, fmt.Errorf("usage of rootfs: %w", err)
	}
	u, err := fs.DiffUsage(ctx, lowers[0], copied)
	if err != nil {
		return 0, fmt.Errorf("usage of rootfs: %w", err)
	}
	return u.Size, nil
}

// mountsBelow lists what is mounted at or below dir, deepest first.
func mountsBelow(dir string) ([]string, error) {
	found, err := mounts.Points(func(at string) bool {
		return at == dir || strings.HasPrefix(at, dir+"/")
	})
	slices.Reverse(found)
	return found, err
}
