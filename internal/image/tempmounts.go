// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
)

// ownMounts makes the libraries create their temporary mounts under the store's
// root, and removes mounts left there by a dead process. By default they are in
// the host's directory of temporary files, where nobody would find them. The
// caller has locked the store.
func (s *Store) ownMounts() error {
	dir := s.path("mounts")
	if err := mount.SetTempMountLocation(dir); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	if len(entries) == 0 {
		// Without directories nothing can be mounted. Skip reading the kernel's
		// mount list, which is long if many containers run.
		return nil
	}
	left, err := mount.CleanupTempMounts(0)
	if err != nil {
		return fmt.Errorf("image store: find the mounts in %s: %w", dir, err)
	}
	for _, err := range left {
		s.log.Warn("a mount of an earlier process could not be removed", "error", err)
	}
	// Directories on which nothing is mounted.
	for _, e := range entries {
		_ = os.Remove(s.path("mounts", e.Name()))
	}
	return nil
}
