package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// RemoveContainer removes a container's two folders. Once they have another
// name the container is gone, whatever happens: what is left is deleted by the
// next Open. Nothing may be mounted below them any more. A container that is
// not there is no error.
func (s *Store) RemoveContainer(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	// The run directory first: a container with a spec and without one is
	// stopped, one with a run directory alone would be an orphan.
	if err := remove(s.shimsOf(id), id); err != nil {
		return err
	}
	if err := remove(s.ContainersDir(), id); err != nil {
		return err
	}
	s.place(id, "")
	return nil
}

// RemoveRunDir removes what a shim left behind.
func (s *Store) RemoveRunDir(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return remove(s.shimsOf(id), id)
}

func remove(dir, id string) error {
	gone := filepath.Join(dir, removing+id)
	// A removal of the same ID that was interrupted would be in the way.
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if err := os.Rename(filepath.Join(dir, id), gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if err := SyncDir(dir); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

// finishRemovals deletes what was renamed for it. Something that can't be
// deleted (a mount is left below it) stays for the next time: it keeps nobody
// from starting.
func finishRemovals(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), removing) {
			_ = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
	return nil
}
