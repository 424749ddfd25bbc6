// SPDX-License-Identifier: Apache-2.0

package beneath

import (
	"fmt"
	"os"
)

// systemFolders are the directories of a container's root file system in which
// OCI runtimes work before they change their own root. Some runtimes name files
// in them from the host's root, so a link there would lead them into a directory
// of the host (CVE-2026-41579 of runc).
var systemFolders = []string{"dev", "proc", "sys"}

// MakeSystemFolders makes sure that the mount points of every OCI runtime in a
// root file system are directories and not links. Call it before each run,
// because the container may have changed its root since the last one.
func MakeSystemFolders(root *os.File) error {
	for _, name := range systemFolders {
		if err := MakeFolder(root, name); err != nil {
			return fmt.Errorf("make /%s of the container a folder: %w", name, err)
		}
	}
	return nil
}
