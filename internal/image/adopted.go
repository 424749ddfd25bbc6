// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"io/fs"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// chainLabel is set on the snapshot of a build step that became a layer of an image.
// Its value is the layer's chain ID. A build step's snapshot is committed under
// another name, because the chain ID is known only when the image is written.
const chainLabel = "holdfast/chain"

// adoptions know which snapshots of build steps are layers of images. They are
// derived from the snapshots' labels.
type adoptions struct {
	mu     sync.Mutex
	loaded bool
	known  map[string]string // storage/chain → snapshot
}

func (a *adoptions) get(storage, chain string) (key string, loaded bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.known[storage+"/"+chain], a.loaded
}

func (a *adoptions) put(storage, chain, key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil {
		a.known = map[string]string{}
	}
	a.known[storage+"/"+chain] = key
}

func (a *adoptions) fill(found map[string]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loaded {
		return
	}
	if a.known == nil {
		a.known = map[string]string{}
	}
	for name, key := range found {
		if a.known[name] == "" {
			a.known[name] = key
		}
	}
	a.loaded = true
}

// loadAdoptions reads the labels of all snapshots, once.
func (ly *layers) loadAdoptions(ctx context.Context) error {
	if _, loaded := ly.adoptions.get("", ""); loaded {
		return nil
	}
	found := map[string]string{}
	for storage, sn := range ly.contents.db.Snapshotters() {
		err := sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			if chain := i.Labels[chainLabel]; chain != "" && i.Kind == snapshots.KindCommitted {
				found[storage+"/"+chain] = i.Name
			}
			return nil
		}, `labels."`+chainLabel+`"`)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	ly.adoptions.fill(found)
	return nil
}

// adopted is a snapshotter that also finds layers by their chain ID that build steps
// have made.
type adopted struct {
	snapshots.Snapshotter
	layers  *layers
	storage string
}

// real returns the name of the snapshot that has a layer.
func (s adopted) real(ctx context.Context, name string) (string, error) {
	if !isDigest(name) {
		return name, nil
	}
	if _, err := s.Snapshotter.Stat(ctx, name); !errdefs.IsNotFound(err) {
		return name, err
	}
	if err := s.layers.loadAdoptions(ctx); err != nil {
		return name, err
	}
	if key, _ := s.layers.adoptions.get(s.storage, name); key != "" {
		return key, nil
	}
	return name, nil
}

func (s adopted) Stat(ctx context.Context, name string) (snapshots.Info, error) {
	name, err := s.real(ctx, name)
	if err != nil {
		return snapshots.Info{}, err
	}
	return s.Snapshotter.Stat(ctx, name)
}

func (s adopted) Usage(ctx context.Context, name string) (snapshots.Usage, error) {
	name, err := s.real(ctx, name)
	if err != nil {
		return snapshots.Usage{}, err
	}
	return s.Snapshotter.Usage(ctx, name)
}

func (s adopted) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	parent, err := s.real(ctx, parent)
	if err != nil {
		return nil, err
	}
	return s.made(ctx, func() ([]mount.Mount, error) { return s.Snapshotter.Prepare(ctx, key, parent, opts...) })
}

func (s adopted) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	parent, err := s.real(ctx, parent)
	if err != nil {
		return nil, err
	}
	return s.made(ctx, func() ([]mount.Mount, error) { return s.Snapshotter.View(ctx, key, parent, opts...) })
}

// made makes a snapshot. A process that was killed between the making of a snapshot's
// directory and its record leaves the directory that the next snapshot wants, and would
// fail each one until the next collection.
func (s adopted) made(ctx context.Context, make func() ([]mount.Mount, error)) ([]mount.Mount, error) {
	mounts, err := make()
	if !errors.Is(err, fs.ErrExist) {
		return mounts, err
	}
	s.layers.cleanDrivers(ctx)
	return make()
}
