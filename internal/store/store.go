// SPDX-License-Identifier: Apache-2.0

// Package store owns the directory tree of the daemon's state. It defines the
// paths and the schema numbers, writes files atomically, and finishes removals
// that were interrupted. What the files mean is up to other packages.
//
//	<data root>/
//	  containers/<id>/            ContainerDir
//	    spec.json                 schema 1: container.Spec
//	    exit.json                 written by the shim (shim/proto.State)
//	    <id>-json.log[.N[.gz]]    written by the shim (logs/format), json-file
//	    local-logs/container.log  the same, local
//	    hostname hosts resolv.conf mounts/
//	  containers/.removing-<id>/  is gone; its event may still have to be journalled
//	  images/ networks/ volumes/ events/
//	<exec root>/
//	  shim/<id>/                  RunDir: socket, FIFOs, state.json, journal
//	    bundle/                   Bundle: config.json, rootfs/
//
// # Schemas
//
// Every JSON file has its schema number at the top level, as "schema". A release
// reads its own number and all lower ones. It migrates in memory, and writes its
// own number when it next writes the file. It refuses a higher number and leaves
// the file alone. The previous release must be able to read a file of a new
// schema, so a schema step only adds fields. testdata/v<N> has one frozen example
// of each schema.
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

	"holdfast/internal/durable"
)

// Names within a container's directory.
const (
	SpecFile = "spec.json"
	removing = ".removing-"
)

// Store is an open tree. Its methods may be called concurrently, except that the
// caller must serialize writes of one container.
type Store struct {
	data string
	exec string

	damagedID string // see DamagedID

	mu    sync.RWMutex      // guards other
	other map[string]string // exec roots of containers that use another one, by ID
}

// Open opens the tree below the two roots, creates what is missing, and finishes
// removals that were interrupted.
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
	if err := s.makeFolders(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	for _, dir := range []string{s.ContainersDir(), s.shimsDir()} {
		if err := finishRemovals(dir); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// DataRoot is the root of what survives a reboot.
func (s *Store) DataRoot() string { return s.data }

// ExecRoot is the root of what a reboot removes.
func (s *Store) ExecRoot() string { return s.exec }

// ContainersDir has a directory for each container.
func (s *Store) ContainersDir() string { return filepath.Join(s.data, "containers") }

// ImagesDir belongs to package image.
func (s *Store) ImagesDir() string { return filepath.Join(s.data, "images") }

// NetworksDir has a file for each network.
func (s *Store) NetworksDir() string { return filepath.Join(s.data, "networks") }

// VolumesDir has a directory for each volume.
func (s *Store) VolumesDir() string { return filepath.Join(s.data, "volumes") }

// EventsDir belongs to package event.
func (s *Store) EventsDir() string { return filepath.Join(s.data, "events") }

func (s *Store) shimsDir() string { return filepath.Join(s.exec, "shim") }

// ContainerDir is the directory with the part of a container that survives a
// reboot.
func (s *Store) ContainerDir(id string) string { return filepath.Join(s.ContainersDir(), id) }

// SpecPath is the container's spec.json.
func (s *Store) SpecPath(id string) string { return filepath.Join(s.ContainerDir(id), SpecFile) }

// LogPath returns the active file of the container's log, where Docker has it for
// the driver. It is empty for a driver without a local file.
func (s *Store) LogPath(id, driver string) string {
	switch driver {
	case "", "json-file":
		return filepath.Join(s.ContainerDir(id), id+"-json.log")
	case "local":
		return filepath.Join(s.ContainerDir(id), "local-logs", "container.log")
	}
	return ""
}

// RunDir is the run directory of the container's shim. It is below the exec root
// with which the container was started. The API's group may pass through it to
// the shim's socket.
func (s *Store) RunDir(id string) string { return filepath.Join(s.shimsOf(id), id) }

func (s *Store) shimsOf(id string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if root := s.other[id]; root != "" {
		return filepath.Join(root, "shim")
	}
	return s.shimsDir()
}

// place records which exec root a container's spec names.
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

// NamesDir has files with the container names of each network, which shims read.
func (s *Store) NamesDir() string { return filepath.Join(s.exec, "names") }

// Bundle is the container's OCI bundle.
func (s *Store) Bundle(id string) string { return filepath.Join(s.RunDir(id), "bundle") }

// Rootfs is where the container's root is mounted.
func (s *Store) Rootfs(id string) string { return filepath.Join(s.Bundle(id), "rootfs") }

// checkID refuses an ID that could name another directory. An ID has letters,
// digits, and after the first character also "_", "." and "-".
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

// RunDirs returns the IDs that have a run directory.
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

// DamagedID returns the path that a damaged ID of the engine was renamed to by
// DaemonID, or an empty string.
func (s *Store) DamagedID() string { return s.damagedID }

// DaemonID returns the identity of this data root, a UUID that `docker info`
// shows. The first call creates it. A damaged one is set aside and made anew.
func (s *Store) DaemonID() (string, error) {
	path := filepath.Join(s.data, engineIDFile)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the engine's ID: %w", err)
	}
	if text := strings.TrimSpace(string(b)); err == nil {
		if uuid.Validate(text) == nil {
			return text, nil
		}
		s.damagedID = path + ".damaged"
		if err := os.Rename(path, s.damagedID); err != nil {
			return "", fmt.Errorf("set the damaged ID of the engine aside: %w", err)
		}
	}
	id := uuid.NewString()
	if err := durable.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the engine's ID: %w", err)
	}
	return id, nil
}
