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
)

// RootsFile is in the exec root and says where the rest is, for who comes when
// no daemon answers. It stays when the daemon ends.
const RootsFile = "roots.json"

// rootsSchema is the file's schema number.
const rootsSchema = 1

// Roots is what a daemon says of where it keeps things.
type Roots struct {
	Schema   int    `json:"schema"`
	DataRoot string `json:"dataRoot"`
	ExecRoot string `json:"execRoot"`
	// Sockets are the paths of the Unix sockets on which the API is served.
	Sockets []string `json:"sockets"`
	Release string   `json:"release"`
}

// WriteRoots writes the file, with paths that hold for everybody. It is read by
// everybody.
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
	return WriteFileAtomic(filepath.Join(r.ExecRoot, RootsFile), append(text, '\n'), 0o644)
}

// ReadRoots reads the file in an exec root. Errors: ErrNotFound;
// ErrPermissionDenied for one that neither root nor the caller owns, for it
// could point anywhere; ErrFailedPrecondition for a newer schema; ErrDataLoss.
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
	return r, decode(path, text, rootsSchema, nil, &r)
}
