// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SecretsDir is the directory of the secrets and configs of tasks.
func SecretsDir(execRoot string) string { return filepath.Join(Dir(execRoot), "secrets") }

// UnmountSecrets removes the tmpfs with all that is on it. There may be several of them, one
// above the other: earlier releases made one for each of two tasks that began at once.
func UnmountSecrets(execRoot string) error {
	dir := SecretsDir(execRoot)
	for {
		switch err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil // nothing is mounted there
		case err != nil:
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
}
