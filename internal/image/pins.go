// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/errdefs"

	"holdfast/internal/errs"
)

// resourceRootfs is a kind of resource of our own for the collector. It has no
// nodes. It exists so that the snapshots that root filesystems use are named as
// roots.
const resourceRootfs = metadata.ResourceMount + 6

// pin is one root filesystem that uses a chain of layers.
type pin struct {
	storage  string
	snapshot string // chain ID
	dir      string
}

// pins knows which chains may not be collected: those named by a link in
// rootfs/, and those given to PinSnapshots that no link names. Nothing is counted. A
// link whose directory is gone holds nothing.
type pins struct {
	links   string
	drivers []string

	// mu is held while a collection marks and sweeps. A caller adds its pin
	// first and looks for the layers afterwards. Either the collection sees
	// that pin, or the caller sees what the collection has left.
	mu     sync.Mutex
	byLink map[string]pin
	start  []string // from PinSnapshots, without those that links name
	known  bool     // PinSnapshots was called: collections are allowed
	// unread is an entry that can't be read as a link, or a database that was set
	// aside. As long as it exists nothing is collected, because it may hold layers
	// that a running container needs.
	unread string

	onSwept func() // called under mu when a collection has removed its entries
	// real returns the snapshot that has a layer if a build made it, else "". It is
	// called under mu.
	real func(storage, chain string) string
}

// openPins reads the links in the directory links.
func openPins(links string, drivers []string) (*pins, error) {
	p := &pins{links: links, drivers: drivers, byLink: map[string]pin{}}
	entries, err := os.ReadDir(links)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		storage, rest, _ := strings.Cut(name, "-")
		chain, _, ok := strings.Cut(rest, "-")
		if !ok || e.Type() != os.ModeSymlink {
			p.unread = filepath.Join(links, name)
			continue
		}
		dir, err := os.Readlink(filepath.Join(links, name))
		if err != nil {
			p.unread = filepath.Join(links, name)
			continue
		}
		p.byLink[name] = pin{storage: storage, snapshot: "sha256:" + chain, dir: dir}
	}
	return p, nil
}

func linkName(storage, snapshot, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return storage + "-" + strings.TrimPrefix(snapshot, "sha256:") + "-" + hex.EncodeToString(sum[:8])
}

// add records that dir, which exists, uses the chain.
func (p *pins) add(storage, snapshot, dir string) error {
	if snapshot == "" {
		return nil // an image without layers
	}
	name := linkName(storage, snapshot, dir)
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.byLink[name]; ok {
		return nil
	}
	err := os.Symlink(dir, filepath.Join(p.links, name))
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("hold layers: %w", err)
	}
	p.byLink[name] = pin{storage: storage, snapshot: snapshot, dir: dir}
	return nil
}

// drop removes every pin of dir and returns the chains that it used.
func (p *pins) drop(dir string) (released []string, _ error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for name, pinned := range p.byLink {
		if pinned.dir == dir {
			errs = append(errs, p.forget(name))
			released = append(released, pinned.snapshot)
		}
	}
	return released, errors.Join(errs...)
}

func (p *pins) forget(name string) error {
	if err := os.Remove(filepath.Join(p.links, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release layers: %w", err)
	}
	delete(p.byLink, name)
	return nil
}

// of returns the pin of dir.
func (p *pins) of(dir string) (pin, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pinned := range p.byLink {
		if pinned.dir == dir {
			return pinned, true
		}
	}
	return pin{}, false
}

func (p *pins) set(snapshots []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	covered := map[string]bool{"": true}
	for _, pinned := range p.byLink {
		covered[pinned.snapshot] = true
	}
	p.start = nil
	for _, s := range snapshots {
		if !covered[s] {
			covered[s] = true
			p.start = append(p.start, s)
		}
	}
	p.known = true
}

func (p *pins) ready() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known && p.unread == ""
}

// PinSnapshots lists the chains that the existing containers use. Each call replaces
// the list of the call before. The first call allows garbage collection. Chains
// of root filesystems that this store prepared are pinned from PrepareRootfs to
// RemoveRootfs, whether listed or not.
func (s *Store) PinSnapshots(ctx context.Context, snapshots []string) error {
	for _, key := range snapshots {
		if key != "" && !isDigest(key) {
			return errs.Invalid("hold layers: %q is not the key of a snapshot", key)
		}
	}
	s.rootfs.pins.set(snapshots)
	s.requests.collectSoon()
	return nil
}

// errNotPinned explains why there is no collection yet.
var errNotPinned = errdefs.ErrFailedPrecondition.WithMessage("garbage collection waits until the containers' layers are known")

// The methods below implement containerd's interface of a collectible resource.

// ReferenceLabel is empty, because no label refers to a rootfs.
func (p *pins) ReferenceLabel() string { return "" }

// StartCollection locks the pins until Finish or Cancel. It never fails: the
// collector leaves out a resource whose StartCollection fails, and would then
// remove the layers that it holds.
func (p *pins) StartCollection(context.Context) (metadata.CollectionContext, error) {
	p.mu.Lock()
	return (*collection)(p), nil
}

type collection pins

// All sends nothing, because a rootfs is not a node.
func (c *collection) All(func(gc.Node)) {}

// Leased sends nothing, because leases hold content and snapshots themselves.
func (c *collection) Leased(_, _ string, _ func(gc.Node)) {}

// Remove is never called, as All sends nothing.
func (c *collection) Remove(gc.Node) {}

// Active names the snapshots that containers use as roots.
func (c *collection) Active(ns string, fn func(gc.Node)) {
	for name, pinned := range c.byLink {
		if _, err := os.Lstat(pinned.dir); errors.Is(err, os.ErrNotExist) {
			if (*pins)(c).forget(name) == nil {
				continue
			}
		}
		c.root(ns, pinned.storage, pinned.snapshot, fn)
	}
	for _, snapshot := range c.start {
		for _, driver := range c.drivers {
			c.root(ns, driver, snapshot, fn)
		}
	}
}

func (c *collection) root(ns, storage, chain string, fn func(gc.Node)) {
	fn(gc.Node{Type: metadata.ResourceSnapshot, Namespace: ns, Key: storage + "/" + chain})
	if c.real == nil {
		return
	}
	if key := c.real(storage, chain); key != "" {
		fn(gc.Node{Type: metadata.ResourceSnapshot, Namespace: ns, Key: storage + "/" + key})
	}
}

// Cancel ends a collection that failed.
func (c *collection) Cancel() error {
	c.mu.Unlock()
	return nil
}

// Finish is called when the metadata entries are removed. The collector removes
// the files afterwards.
func (c *collection) Finish() error {
	if c.onSwept != nil {
		c.onSwept()
	}
	c.mu.Unlock()
	return nil
}
