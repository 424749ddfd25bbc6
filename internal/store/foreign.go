// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io"
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
	if ours, err := hasContainers(dataRoot); err != nil || ours {
		return err
	}
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
		return errs.Unmet(
			"the data root %s is %s's (it has %s): nothing was changed in it; name a folder of its own with \"data-root\", and bring images over by \"docker save\" and \"holdfast load\"",
			dataRoot, f.whose, found[0][len(filepath.Clean(dataRoot))+1:])
	}
	return nil
}

// hasContainers reports whether a data root has a container of ours. It looks at no more
// folders than until the first of them, as every start of a daemon waits for the answer.
func hasContainers(dataRoot string) (bool, error) {
	dir, err := os.Open(filepath.Join(dataRoot, "containers"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look at the data root %s: %w", dataRoot, err)
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(64)
		if errors.Is(err, io.EOF) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("look at the data root %s: %w", dataRoot, err)
		}
		for _, name := range names {
			if _, err := os.Lstat(filepath.Join(dir.Name(), name, SpecFile)); err == nil {
				return true, nil
			}
		}
	}
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
