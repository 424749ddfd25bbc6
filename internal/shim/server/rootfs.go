// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"io/fs"
	"path/filepath"

	"holdfast/internal/beneath"
)

// makeSystemFolders makes the folders that the runtime mounts on, and replaces
// anything in the root file system there that would lead the runtime out of it. The
// container may have put it there in its last run. If there is no root file system,
// the runtime reports that.
func makeSystemFolders(bundle string) error {
	root, err := beneath.Root(filepath.Join(bundle, "rootfs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return beneath.MakeSystemFolders(root)
}
