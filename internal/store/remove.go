// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"holdfast/internal/container"
	"holdfast/internal/durable"
)

// RemoveContainer removes a container's two directories. After a crash the next
// Open deletes the rest. Nothing may be mounted below them any more. A missing
// container is not an error.
func (s *Store) RemoveContainer(id string) error {
	return errors.Join(s.SetAside(id), s.DeleteAside(id))
}

// SetAside removes a container's run directory and renames its other directory: from
// then on the container is gone. Aside returns it until DeleteAside has deleted it.
// Nothing may be mounted below the directories any more. A missing container is not
// an error.
func (s *Store) SetAside(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	// The run directory goes first: a container with only a spec is stopped, but
	// one with only a run directory would be an orphan.
	if err := remove(s.shimsOf(id), id); err != nil {
		return err
	}
	if err := setAside(s.ContainersDir(), id); err != nil {
		return err
	}
	s.place(id, "")
	return nil
}

// DeleteAside deletes what SetAside has left of a container.
func (s *Store) DeleteAside(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return deleteAside(s.ContainersDir(), id)
}

// Aside is a container that is gone, and whose directory is not deleted yet.
type Aside struct {
	Spec *container.Spec
	Dir  string // what was its ContainerDir
}

// Aside returns the containers that a crash left between SetAside and DeleteAside.
func (s *Store) Aside() ([]Aside, error) {
	entries, err := os.ReadDir(s.ContainersDir())
	if err != nil {
		return nil, fmt.Errorf("list removed containers: %w", err)
	}
	var out []Aside
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), removing); ok {
			dir := filepath.Join(s.ContainersDir(), e.Name())
			if spec, err := readSpec(dir, id); err == nil {
				out = append(out, Aside{spec, dir})
			}
		}
	}
	return out, nil
}

// RemoveRunDir removes the run directory that a shim left.
func (s *Store) RemoveRunDir(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return remove(s.shimsOf(id), id)
}

func remove(dir, id string) error {
	if err := setAside(dir, id); err != nil {
		return err
	}
	return deleteAside(dir, id)
}

func setAside(dir, id string) error {
	gone := filepath.Join(dir, removing+id)
	// A removal of the same ID that was interrupted would prevent the rename.
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if err := os.Rename(filepath.Join(dir, id), gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if err := durable.SyncDir(dir); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

func deleteAside(dir, id string) error {
	if err := os.RemoveAll(filepath.Join(dir, removing+id)); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

// finishRemovals deletes directories that were renamed for removal, except those
// with a spec, which Aside returns. One that can't be deleted, because there is
// still a mount below it, is left for the next start and does not prevent this one.
func finishRemovals(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), removing)
		if !ok {
			continue
		}
		if _, err := readSpec(filepath.Join(dir, e.Name()), id); err != nil {
			_ = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
	return nil
}
