// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"

	"holdfast/internal/durable"
)

// RootsFile is a file in the exec root with the paths of everything else, for
// clients when no daemon answers. It stays when the daemon ends.
const RootsFile = "roots.json"

// rootsSchema is the file's schema number.
const rootsSchema = 1

// Roots records the paths that a daemon uses.
type Roots struct {
	Schema   int    `json:"schema"`
	DataRoot string `json:"dataRoot"`
	ExecRoot string `json:"execRoot"`
	// Sockets are the paths of the Unix sockets on which the API is served.
	Sockets []string `json:"sockets"`
	Release string   `json:"release"`
}

// WriteRoots writes the file, with absolute paths. All users may read it.
func WriteRoots(r Roots) error {
	var err error
	for _, path := range []*string{&r.DataRoot, &r.ExecRoot} {
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("write the roots: %w", err)
		}
	}
	r.Schema = rootsSchema
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("write the roots: %w", err)
	}
	return durable.WriteFile(filepath.Join(r.ExecRoot, RootsFile), append(text, '\n'), 0o644)
}

// ReadRoots reads the file in an exec root. Errors: ErrNotFound;
// ErrPermissionDenied if neither root nor the caller owns the file, because its
// paths can't be trusted then; ErrFailedPrecondition for a newer schema;
// ErrDataLoss.
func ReadRoots(execRoot string) (Roots, error) {
	path := filepath.Join(execRoot, RootsFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Roots{}, fmt.Errorf("no daemon has left word in %s: %w", execRoot, errdefs.ErrNotFound)
	}
	if err != nil {
		return Roots{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Roots{}, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return Roots{}, fmt.Errorf("%s belongs to another user: %w", path, errdefs.ErrPermissionDenied)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Roots{}, err
	}
	var r Roots
	return r, decode(path, text, rootsSchema, nil, &r, &r.Schema)
}
