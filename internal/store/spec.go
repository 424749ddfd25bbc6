// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
	"holdfast/internal/durable"
	"holdfast/internal/shim/proto"
)

// WriteSpec writes spec durably, with this release's schema number.
func (s *Store) WriteSpec(spec *container.Spec) error {
	if err := checkID(spec.ID); err != nil {
		return err
	}
	out := *spec
	out.Schema = container.SpecSchema
	text, err := json.MarshalIndent(out, "", "\t")
	if err != nil {
		return fmt.Errorf("write spec of container %s: %w", spec.ID, err)
	}
	if err := os.Mkdir(s.ContainerDir(spec.ID), 0o750); err == nil {
		if err := durable.TakeGroup(s.ContainerDir(spec.ID)); err != nil {
			return fmt.Errorf("write spec of container %s: %w", spec.ID, err)
		}
		// The directory's own name must be durable, too.
		if err := durable.SyncDir(s.ContainersDir()); err != nil {
			return fmt.Errorf("write spec of container %s: %w", spec.ID, err)
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write spec of container %s: %w", spec.ID, err)
	}
	if err := durable.WriteFile(s.SpecPath(spec.ID), append(text, '\n'), 0o640); err != nil {
		return err
	}
	s.place(spec.ID, spec.ExecRoot)
	return nil
}

// ReadSpec reads a container's spec. Errors: ErrNotFound; ErrFailedPrecondition
// for a schema of a newer release; ErrDataLoss for a file that is truncated or
// that is not a spec of this container. The last two errors name the file, which
// is left alone.
func (s *Store) ReadSpec(id string) (*container.Spec, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	spec, err := readSpec(s.ContainerDir(id), id)
	if err == nil {
		s.place(id, spec.ExecRoot)
	}
	return spec, err
}

// readSpec reads the spec in a container's directory.
func readSpec(dir, id string) (*container.Spec, error) {
	path := filepath.Join(dir, SpecFile)
	text, err := proto.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no spec of container %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read spec of container %s: %w", id, err)
	}
	var spec container.Spec
	if err := decode(path, text, container.SpecSchema, specMigrations, &spec, &spec.Schema); err != nil {
		return nil, err
	}
	if spec.ID != id {
		return nil, fmt.Errorf("%s is not the spec of container %s: it has the ID %q: %w", path, id, spec.ID, errdefs.ErrDataLoss)
	}
	return &spec, nil
}

// migration converts an object of one schema to the next one.
type migration func(map[string]json.RawMessage) error

// specMigrations[i] migrates from schema i+1 to i+2.
var specMigrations = []migration{}

// decode parses text, the content of the file path, migrates it to the schema
// current and decodes it into v. schema points to v's schema number.
func decode(path string, text []byte, current int, migrations []migration, v any, schema *int) error {
	damaged := func(err error) error {
		return fmt.Errorf("%s is damaged: %s: %w", path, describe(err), errdefs.ErrDataLoss)
	}
	var top struct {
		Schema *int `json:"schema"`
	}
	if n, ok := firstSchema(text); ok && n == current {
		top.Schema = &n
	} else if err := json.Unmarshal(text, &top); err != nil {
		return damaged(err)
	}
	if top.Schema == nil || *top.Schema < 1 {
		return damaged(errors.New("it has no schema number"))
	}
	if *top.Schema > current {
		return fmt.Errorf("%s was written by a newer release: its schema is %d, this release reads up to %d; start the newer release again: %w",
			path, *top.Schema, current, errdefs.ErrFailedPrecondition)
	}
	if *top.Schema < current {
		var object map[string]json.RawMessage
		if err := json.Unmarshal(text, &object); err != nil {
			return damaged(err)
		}
		for from := *top.Schema; from < current; from++ {
			if err := migrations[from-1](object); err != nil {
				return fmt.Errorf("bring %s from schema %d to %d: %w", path, from, from+1, err)
			}
		}
		object["schema"], _ = json.Marshal(current)
		var err error
		if text, err = json.Marshal(object); err != nil {
			return damaged(err)
		}
	}
	if err := json.Unmarshal(text, v); err != nil {
		return damaged(err)
	}
	if *schema != current {
		return damaged(errors.New("it has more than one schema number"))
	}
	return nil
}

// firstSchema reads a schema number at the beginning, where this program writes
// it. Then the text need not be parsed twice.
func firstSchema(text []byte) (n int, ok bool) {
	d := json.NewDecoder(bytes.NewReader(text))
	for _, want := range []json.Token{json.Delim('{'), "schema"} {
		if t, err := d.Token(); err != nil || t != want {
			return 0, false
		}
	}
	return n, d.Decode(&n) == nil
}

// describe words an error of the JSON decoder for users.
func describe(err error) string {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && strings.Contains(syntax.Error(), "unexpected end") {
		return fmt.Sprintf("it ends after %d bytes, in the middle", syntax.Offset)
	}
	return err.Error()
}

// Broken is a container whose spec can't be read. It is listed and not dropped:
// its files are left alone.
type Broken struct {
	ID  string
	Err error // see ReadSpec
}

// loaders is the number of specs that are read concurrently.
const loaders = 16

// LoadAll reads the specs of all containers, in no order. It removes an empty
// directory, which a crash left of a create that never returned. It skips a
// half-made one, which Unborn returns. Any other directory without a spec is
// broken.
func (s *Store) LoadAll() (specs []*container.Spec, broken []Broken, err error) {
	entries, err := os.ReadDir(s.ContainersDir())
	if err != nil {
		return nil, nil, fmt.Errorf("load containers: %w", err)
	}
	ids := make(chan string)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range min(loaders, len(entries)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for id := range ids {
				spec, err := s.ReadSpec(id)
				if errdefs.IsNotFound(err) {
					if s.neverWas(id) {
						_ = remove(s.ContainersDir(), id)
						continue
					}
					if s.beingMade(id) {
						continue
					}
				}
				mu.Lock()
				if err != nil {
					broken = append(broken, Broken{id, err})
				} else {
					specs = append(specs, spec)
				}
				mu.Unlock()
			}
		}()
	}
	for _, e := range entries {
		if e.IsDir() && checkID(e.Name()) == nil {
			ids <- e.Name()
		}
	}
	close(ids)
	wg.Wait()
	return specs, broken, nil
}

// neverWas reports whether a container's directory only has what a create makes
// before the spec.
func (s *Store) neverWas(id string) bool {
	entries, err := os.ReadDir(s.ContainerDir(id))
	if err != nil {
		return false
	}
	for _, e := range entries {
		if !durable.IsTemp(e.Name(), SpecFile) {
			return false
		}
	}
	return true
}
