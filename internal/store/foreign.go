// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"os"
	"path/filepath"

	"holdfast/internal/errs"
)

// engineIDFile holds the daemon's ID, in the data roots of both engines.
const engineIDFile = "engine-id"

// lockFile is the lock file of package handoff in a data root.
const lockFile = "holdfastd.lock"

// foreign lists the files and directories that identify the data root of another
// engine. One match is enough. Patterns are those of package path/filepath.
var foreign = []struct{ whose, pattern string }{
	{"Docker", "containers/*/hostconfig.json"},
	{"Docker", "containers/*/config.v2.json"},
	{"Docker", "image/*/repositories.json"},
	{"Docker", "image/*/distribution"},
	{"Docker", "containerd/daemon"},
	{"Docker", "network/files/local-kv.db"},
	{"Docker", "volumes/metadata.db"},
	{"Docker", engineIDFile},
	{"Docker", "buildkit/cache.db"},
	{"Podman", "overlay-containers/containers.json"},
	{"Podman", "overlay-images/images.json"},
	{"Podman", "libpod/bolt_state.db"},
	{"containerd", "io.containerd.metadata.v1.bolt"},
	{"containerd", "io.containerd.content.v1.content"},
}

// CheckForeign refuses a data root that belongs to another engine, because each
// engine would use or clean up the other's files. It changes nothing. It accepts
// a data root that has containers of ours all the same, because an earlier
// release accepted it.
func CheckForeign(dataRoot string) error {
	for _, f := range foreign {
		found, err := filepath.Glob(filepath.Join(escapeGlob(dataRoot), f.pattern))
		if err != nil {
			return fmt.Errorf("look at the data root %s: %w", dataRoot, err)
		}
		if f.pattern == engineIDFile {
			// Our own data root has this file, too, and then always a lock file.
			if _, err := os.Lstat(filepath.Join(dataRoot, lockFile)); err == nil {
				continue
			}
		}
		if len(found) == 0 {
			continue
		}
		if ours, err := filepath.Glob(filepath.Join(escapeGlob(dataRoot), "containers", "*", SpecFile)); err != nil || len(ours) > 0 {
			return err
		}
		return errs.Unmet(
			"the data root %s is %s's (it has %s): nothing was changed in it; name a folder of its own with \"data-root\", and bring images over by \"docker save\" and \"holdfast load\"",
			dataRoot, f.whose, found[0][len(filepath.Clean(dataRoot))+1:])
	}
	return nil
}

// escapeGlob escapes a path so that the pattern only matches that path.
func escapeGlob(path string) string {
	var out []byte
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, path[i])
	}
	return filepath.Clean(string(out))
}
