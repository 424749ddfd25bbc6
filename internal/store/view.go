// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/container"
)

// View is a read-only Store, for a client when no daemon runs. The methods that
// would write return ErrPermissionDenied.
type View struct{ *Store }

// OpenView opens the tree below two roots that a daemon has created.
func OpenView(dataRoot, execRoot string) (View, error) {
	s := &Store{}
	var err error
	if s.data, err = filepath.Abs(dataRoot); err != nil {
		return View{}, fmt.Errorf("open data root: %w", err)
	}
	if s.exec, err = filepath.Abs(execRoot); err != nil {
		return View{}, fmt.Errorf("open exec root: %w", err)
	}
	if _, err := os.Stat(s.ContainersDir()); err != nil {
		return View{}, fmt.Errorf("open data root: %w", err)
	}
	return View{s}, nil
}

var errView = fmt.Errorf("the tree is open read-only: %w", errdefs.ErrPermissionDenied)

// LoadAll reads the specs of all containers, in no order. It skips directories
// without a spec: they are half made or half removed.
func (v View) LoadAll() (specs []*container.Spec, broken []Broken, err error) {
	entries, err := os.ReadDir(v.ContainersDir())
	if err != nil {
		return nil, nil, fmt.Errorf("load containers: %w", err)
	}
	type read struct {
		spec *container.Spec
		err  error
	}
	got := make([]read, len(entries))
	var g errgroup.Group
	g.SetLimit(loaders)
	for i, e := range entries {
		if e.IsDir() && checkID(e.Name()) == nil {
			g.Go(func() error {
				got[i].spec, got[i].err = v.ReadSpec(e.Name())
				return nil
			})
		}
	}
	_ = g.Wait()
	for i, r := range got {
		switch {
		case r.spec != nil && r.err == nil:
			specs = append(specs, r.spec)
		case r.err != nil && !errdefs.IsNotFound(r.err):
			broken = append(broken, Broken{entries[i].Name(), r.err})
		}
	}
	return specs, broken, nil
}

// WriteSpec is refused.
func (View) WriteSpec(*container.Spec) error { return errView }

// BeginCreate is refused.
func (View) BeginCreate(string) error { return errView }

// NoteVolume is refused.
func (View) NoteVolume(string, string) error { return errView }

// EndCreate is refused.
func (View) EndCreate(string) error { return errView }

// RemoveContainer is refused.
func (View) RemoveContainer(string) error { return errView }

// SetAside is refused.
func (View) SetAside(string) error { return errView }

// DeleteAside is refused.
func (View) DeleteAside(string) error { return errView }

// RemoveRunDir is refused.
func (View) RemoveRunDir(string) error { return errView }
