// Package store owns the tree of files in which the daemon's state lives: where
// things are, that a file is whole or not there at all, which schema it has,
// and that a removal which has begun is finished. What the files mean is the
// business of others.
//
//	<data root>/
//	  containers/<id>/            ContainerDir
//	    spec.json                 schema 1: container.Spec
//	    exit.json                 written by the shim (shim/proto.State)
//	    <id>-json.log[.N[.gz]]    written by the shim (logs/format), json-file
//	    local-logs/container.log  the same, local
//	    hostname hosts resolv.conf mounts/
//	  containers/.removing-<id>/  a removal that has begun
//	  images/ networks/ volumes/ events/
//	<exec root>/
//	  shim/<id>/                  RunDir: socket, FIFOs, state.json, journal
//	    bundle/                   Bundle: config.json, rootfs/
//
// # Schemas
//
// Every JSON file has the number of its schema at its top, "schema". A release
// reads its own number and all below it; it migrates in memory and writes its
// own number when it writes the file next. A higher number is refused, and the
// file is left as it is. A schema step is readable by the release before it,
// which means that it only ever adds fields; testdata/v<N> keeps one frozen
// example of each.
//
//	spec.json   1  container.Spec as first released
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
)

// Names within a container's folder.
const (
	SpecFile = "spec.json"
	removing = ".removing-"
)

// Store is an open tree. Its methods may be called by several goroutines; two
// writers of one container are the caller's to keep apart.
type Store struct {
	data string
	exec string

	mu    sync.RWMutex      // guards other
	other map[string]string // exec roots of containers that keep another, by ID
}

// Open opens the tree below the two roots, makes what is missing, and
// finishes removals that were interrupted.
func Open(dataRoot, execRoot string) (*Store, error) {
	var err error
	s := &Store{}
	if s.data, err = filepath.Abs(dataRoot); err != nil {
		return nil, fmt.Errorf("open data root: %w", err)
	}
	if s.exec, err = filepath.Abs(execRoot); err != nil {
		return nil, fmt.Errorf("open exec root: %w", err)
	}
	if err := checkRoots(s.data, s.exec); err != nil {
		return nil, err
	}
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		// Containers in user namespaces pass through the data root, and
		// clients through the exec root; they don't read either.
		{s.data, 0o711}, {s.exec, 0o711},
		{s.ContainersDir(), 0o710}, {s.ImagesDir(), 0o711}, {s.NetworksDir(), 0o700},
		{s.VolumesDir(), 0o711}, {s.EventsDir(), 0o700}, {s.shimsDir(), 0o711},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	for _, dir := range []string{s.ContainersDir(), s.shimsDir()} {
		if err := finishRemovals(dir); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// DataRoot is what lives on through a reboot.
func (s *Store) DataRoot() string { return s.data }

// ExecRoot is what lives as long as the machine runs.
func (s *Store) ExecRoot() string { return s.exec }

// ContainersDir holds a folder for each container.
func (s *Store) ContainersDir() string { return filepath.Join(s.data, "containers") }

// ImagesDir belongs to package image.
func (s *Store) ImagesDir() string { return filepath.Join(s.data, "images") }

// NetworksDir holds a file for each network.
func (s *Store) NetworksDir() string { return filepath.Join(s.data, "networks") }

// VolumesDir holds a folder for each volume.
func (s *Store) VolumesDir() string { return filepath.Join(s.data, "volumes") }

// EventsDir belongs to package event.
func (s *Store) EventsDir() string { return filepath.Join(s.data, "events") }

func (s *Store) shimsDir() string { return filepath.Join(s.exec, "shim") }

// ContainerDir is what of a container lives on through a reboot.
func (s *Store) ContainerDir(id string) string { return filepath.Join(s.ContainersDir(), id) }

// SpecPath is the container's spec.json.
func (s *Store) SpecPath(id string) string { return filepath.Join(s.ContainerDir(id), SpecFile) }

// LogPath is the active file of the container's log: Docker's place for the
// driver, and empty for one that keeps no file here.
func (s *Store) LogPath(id, driver string) string {
	switch driver {
	case "", "json-file":
		return filepath.Join(s.ContainerDir(id), id+"-json.log")
	case "local":
		return filepath.Join(s.ContainerDir(id), "local-logs", "container.log")
	}
	return ""
}

// RunDir is the run directory of the container's shim. It is below the exec
// root that the container was started under.
func (s *Store) RunDir(id string) string { return filepath.Join(s.shimsOf(id), id) }

func (s *Store) shimsOf(id string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if root := s.other[id]; root != "" {
		return filepath.Join(root, "shim")
	}
	return s.shimsDir()
}

// place notes which exec root a container's spec names.
func (s *Store) place(id, root string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if root == "" || root == s.exec {
		delete(s.other, id)
		return
	}
	if s.other == nil {
		s.other = map[string]string{}
	}
	s.other[id] = root
}

// Bundle is the container's OCI bundle.
func (s *Store) Bundle(id string) string { return filepath.Join(s.RunDir(id), "bundle") }

// Rootfs is where the container's root is mounted.
func (s *Store) Rootfs(id string) string { return filepath.Join(s.Bundle(id), "rootfs") }

// checkID keeps a wrong ID from naming another folder: letters, digits, and
// after the first also "_", "." and "-".
func checkID(id string) error {
	for i, c := range []byte(id) {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return fmt.Errorf("invalid container ID %q: %w", id, errdefs.ErrInvalidArgument)
		}
	}
	if id == "" {
		return fmt.Errorf("invalid container ID %q: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// RunDirs are the IDs that have a run directory.
func (s *Store) RunDirs() ([]string, error) {
	entries, err := os.ReadDir(s.shimsDir())
	if err != nil {
		return nil, fmt.Errorf("list run directories: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && checkID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// DaemonID is the identity of this data root, made when it is first asked for:
// a UUID, as `docker info` shows it.
func (s *Store) DaemonID() (string, error) {
	path := filepath.Join(s.data, "engine-id")
	if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
		return strings.TrimSpace(string(b)), nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the engine's ID: %w", err)
	}
	id := uuid.NewString()
	if err := WriteFileAtomic(path, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the engine's ID: %w", err)
	}
	return id, nil
}
