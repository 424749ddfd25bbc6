// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"holdfast/internal/beneath"
	"holdfast/internal/errs"
)

// Subtree clones the mount of a file or directory at a relative path in a volume.
// The clone is not mounted yet (open_tree(2)). It is released by closing it, or
// by unmounting it after it was mounted. A container that uses the volume may be
// changing it: links are followed as long as they stay in the volume, and the
// clone is of the file that was found, whatever has its name later. The volume
// must be mounted by the caller, see Mount. Errors: ErrNotFound for the volume;
// ErrInvalidArgument if the path leads out of the volume or does not exist.
//
// Mounts and unmounts below the path on the host propagate to the clone. Changes
// of the clone do not propagate to the host.
func (v *Volumes) Subtree(name, path string) (*os.File, error) {
	e, err := v.lock(name)
	if err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	fail := func(err error) error { return fmt.Errorf("subpath %s of volume %s: %w", path, name, err) }
	root, err := beneath.Root(v.data(name))
	if err != nil {
		return nil, fail(err)
	}
	defer root.Close()
	f, err := beneath.Open(root, path, unix.O_PATH)
	switch {
	case errors.Is(err, unix.EXDEV):
		return nil, errs.Invalid("subpath %s of volume %s leads out of the volume", path, name)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return nil, errs.Invalid("subpath %s of volume %s: %v", path, name, err)
	case err != nil:
		return nil, fail(err)
	}
	defer f.Close()
	fd, err := unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fail(os.NewSyscallError("open_tree", err))
	}
	return os.NewFile(uintptr(fd), path), nil
}
