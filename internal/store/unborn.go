// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"holdfast/internal/durable"
)

// creatingFile marks a container that is being created. It is in the container's
// directory from the first step of its creation until its spec is written and the
// event of its creation is journalled. It has a line for each anonymous volume that
// was created with the container. If it exists without a spec, the container is half
// made, and no client was answered. It need not survive a power failure that loses
// the directory, except that the line of a volume is durable before the volume is.
const creatingFile = "creating"

// Unborn is a container whose creation a crash interrupted.
type Unborn struct {
	ID string
	// Complete: the container has a spec. Only the event of its creation may be
	// missing.
	Complete bool
	// Volumes are the anonymous volumes that may have been created for it.
	Volumes []string
}

// BeginCreate creates a container's directory, marked as half made.
func (s *Store) BeginCreate(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("create container %s: %w", id, err) }
	if err := os.Mkdir(s.ContainerDir(id), 0o750); err != nil {
		return fail(err)
	}
	if err := durable.TakeGroup(s.ContainerDir(id)); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(s.creating(id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	if err := f.Close(); err != nil {
		return fail(err)
	}
	// The directory's own name must be durable before the spec in it is.
	if err := durable.SyncDir(s.ContainersDir()); err != nil {
		return fail(err)
	}
	return nil
}

// NoteVolume records an anonymous volume of a half-made container, durably, before
// the volume is created.
func (s *Store) NoteVolume(id, name string) error {
	f, err := os.OpenFile(s.creating(id), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	_, err = f.WriteString(name + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	if err := durable.SyncDir(s.ContainerDir(id)); err != nil {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	return nil
}

// EndCreate removes the mark, after the spec was written and the event journalled.
func (s *Store) EndCreate(id string) error {
	if err := os.Remove(s.creating(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	return nil
}

// Unborn returns the containers whose creation crashes have interrupted.
func (s *Store) Unborn() ([]Unborn, error) {
	entries, err := os.ReadDir(s.ContainersDir())
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var out []Unborn
	for _, e := range entries {
		if !e.IsDir() || checkID(e.Name()) != nil {
			continue
		}
		text, err := os.ReadFile(s.creating(e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list containers: %w", err)
		}
		u := Unborn{ID: e.Name(), Complete: !s.beingMade(e.Name())}
		for line := range strings.Lines(string(text)) {
			// The volume is only created after its line is complete.
			if name, whole := strings.CutSuffix(line, "\n"); whole && name != "" {
				u.Volumes = append(u.Volumes, name)
			}
		}
		out = append(out, u)
	}
	return out, nil
}

func (s *Store) beingMade(id string) bool {
	if _, err := os.Lstat(s.SpecPath(id)); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err := os.Lstat(s.creating(id))
	return err == nil
}

func (s *Store) creating(id string) string { return filepath.Join(s.ContainerDir(id), creatingFile) }
