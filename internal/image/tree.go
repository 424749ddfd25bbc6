// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"holdfast/internal/beneath"
	"holdfast/internal/errs"
	"holdfast/internal/image/mounts"
)

// PinLayers keeps the layers of img from being collected until RemoveRootfs of
// dir, which exists, and unpacks them if needed. It is idempotent.
func (rf *rootfs) PinLayers(ctx context.Context, img Image, dir string) error {
	if _, err := rf.pinnedLayers(rf.ctx(ctx), img, dir); err != nil {
		return fmt.Errorf("layers of %s: %w", img.Ref, err)
	}
	return nil
}

// pinnedLayers is PinLayers that also returns the directories of the layers, top
// first.
func (rf *rootfs) pinnedLayers(ctx context.Context, img Image, dir string) ([]string, error) {
	// The pin must be added before the layers are looked up: see pins.mu.
	if err := rf.pins.add(img.Storage, img.Snapshot, dir); err != nil {
		return nil, err
	}
	lowers, err := rf.layers.lowerDirs(ctx, img.Storage, img.Snapshot)
	if errdefs.IsNotFound(err) {
		// The layers are not unpacked for this driver, or were removed since
		// img was resolved.
		if err = rf.layers.unpackManifest(ctx, digest.Digest(img.Manifest), img.Storage); err == nil {
			lowers, err = rf.layers.lowerDirs(ctx, img.Storage, img.Snapshot)
		}
	}
	return lowers, err
}

// Tree opens a relative path in the files of an image and returns it as a
// detached read-only mount. The image's layers are pinned for dir, see
// PinLayers. An image may be hostile, so symbolic links are followed only
// while they stay inside it. Errors: ErrInvalidArgument if the path does not
// exist or leads out of the image.
func (rf *rootfs) Tree(ctx context.Context, snapshot, storage, dir, path string) (_ *os.File, err error) {
	ctx = rf.ctx(ctx)
	if err := rf.pins.add(storage, snapshot, dir); err != nil {
		return nil, err
	}
	lowers, err := rf.layers.lowerDirs(ctx, storage, snapshot)
	if err != nil {
		return nil, fmt.Errorf("mount an image: layers of %s: %w", snapshot, err)
	}
	if storage == Overlay && len(lowers) == 1 {
		// A container that may mount could make a bind mount of the layer
		// writable, but not an overlay without a writable layer.
		empty, err := rf.emptyLayer()
		if err != nil {
			return nil, fmt.Errorf("mount an image: %w", err)
		}
		lowers = []string{lowers[0], empty}
	}
	place, err := os.MkdirTemp(rf.path("mounts"), "tree-")
	if err != nil {
		return nil, fmt.Errorf("mount an image: %w", err)
	}
	defer func() {
		// If the directory can't be removed, the next start removes it.
		err = errors.Join(err, rf.UnmountRootfs(place), os.Remove(place))
	}()
	if err := rf.mount(storage, lowers, dir, place, true, mounts.Overlay.Mount); err != nil {
		return nil, fmt.Errorf("mount an image at %s: %w", place, err)
	}
	root, err := beneath.Root(place)
	if err != nil {
		return nil, fmt.Errorf("mount an image: %w", err)
	}
	defer root.Close()
	at, err := beneath.Open(root, path, unix.O_PATH)
	switch {
	case errors.Is(err, unix.EXDEV):
		return nil, errs.Invalid("subpath %s leads out of the image", path)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return nil, errs.Invalid("subpath %s of the image: %v", path, err)
	case err != nil:
		return nil, fmt.Errorf("subpath %s of the image: %w", path, err)
	}
	defer at.Close()
	fd, err := unix.OpenTree(int(at.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("mount an image: %w", os.NewSyscallError("open_tree", err))
	}
	return os.NewFile(uintptr(fd), path), nil
}
