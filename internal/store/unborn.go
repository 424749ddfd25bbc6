package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// creatingFile stands in a container's folder from the first thing that is made
// for it until its spec is written, and has a line for each anonymous volume
// that was made along with it. With it and without a spec the container never
// was: nobody was told of it. It need not outlive a power failure that takes
// the folder along.
const creatingFile = "creating"

// Unborn is a container that a crash interrupted in its making.
type Unborn struct {
	ID string
	// Volumes are the anonymous volumes that may have been made for it.
	Volumes []string
}

// BeginCreate makes a container's folder, marked as half made.
func (s *Store) BeginCreate(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("create container %s: %w", id, err) }
	if err := os.Mkdir(s.ContainerDir(id), 0o750); err != nil {
		return fail(err)
	}
	if err := TakeGroup(s.ContainerDir(id)); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(s.creating(id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	if err := f.Close(); err != nil {
		return fail(err)
	}
	// The folder's own name must be durable before the spec in it is.
	if err := SyncDir(s.ContainersDir()); err != nil {
		return fail(err)
	}
	return nil
}

// NoteVolume records, before it is made, an anonymous volume of a container
// that is being made.
func (s *Store) NoteVolume(id, name string) error {
	f, err := os.OpenFile(s.creating(id), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	_, err = f.WriteString(name + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	return nil
}

// EndCreate takes the mark away, once the spec is written.
func (s *Store) EndCreate(id string) error {
	if err := os.Remove(s.creating(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	return nil
}

// Unborn lists what crashes left half made.
func (s *Store) Unborn() ([]Unborn, error) {
	entries, err := os.ReadDir(s.ContainersDir())
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var out []Unborn
	for _, e := range entries {
		if !e.IsDir() || checkID(e.Name()) != nil || !s.beingMade(e.Name()) {
			continue
		}
		text, err := os.ReadFile(s.creating(e.Name()))
		if err != nil {
			return nil, fmt.Errorf("list containers: %w", err)
		}
		u := Unborn{ID: e.Name()}
		for line := range strings.Lines(string(text)) {
			// A torn line was not yet a volume.
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
