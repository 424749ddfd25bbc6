package image

import (
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
)

// ownMounts makes the libraries mount what they unpack under the store's root,
// and takes away what a dead process left mounted there. Elsewhere, which is in
// the host's folder of temporary files, nobody would find it. The store is
// locked.
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
		// Nothing can be mounted where there is no folder, and the kernel's list
		// of mounts is long where many containers run.
		return nil
	}
	left, err := mount.CleanupTempMounts(0)
	if err != nil {
		return fmt.Errorf("image store: look for what is mounted in %s: %w", dir, err)
	}
	for _, err := range left {
		s.log.Warn("a mount of an earlier process was left behind", "error", err)
	}
	// Folders that were not mounted yet, or no more.
	for _, e := range entries {
		_ = os.Remove(s.path("mounts", e.Name()))
	}
	return nil
}
