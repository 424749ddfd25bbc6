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
)

// resourceRootfs is the collector's own kind of resource. It has no nodes: it
// exists to name the snapshots that root filesystems stand on as roots.
const resourceRootfs = metadata.ResourceMount + 6

// hold is one root filesystem that stands on a chain of layers.
type hold struct {
	storage  string
	snapshot string // chain ID
	dir      string
}

// holds knows which chains may not be collected: those that a link in rootfs/
// names, and those given to Hold that no link names. Nothing is counted; a
// link whose directory is gone holds nothing.
type holds struct {
	links   string
	drivers []string

	// mu is held over the marking and sweeping of a collection. Who adds its
	// hold first and looks for the layers afterwards is therefore either seen
	// by the collection, or sees what it has left.
	mu     sync.Mutex
	byLink map[string]hold
	start  []string // from Hold, without those that links cover
	known  bool     // Hold was called: collecting is allowed

	onSwept func() // called under mu when a collection has removed its entries
}

// openHolds reads the links. One that can't be read stops the start: without
// it the collector could remove what a running container needs.
func openHolds(links string, drivers []string) (*holds, error) {
	h := &holds{links: links, drivers: drivers, byLink: map[string]hold{}}
	entries, err := os.ReadDir(links)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		storage, rest, _ := strings.Cut(name, "-")
		chain, _, ok := strings.Cut(rest, "-")
		if !ok || e.Type() != os.ModeSymlink {
			return nil, fmt.Errorf("image store: %s is not a link to a container's rootfs; remove it", filepath.Join(links, name))
		}
		dir, err := os.Readlink(filepath.Join(links, name))
		if err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
		h.byLink[name] = hold{storage: storage, snapshot: "sha256:" + chain, dir: dir}
	}
	return h, nil
}

func linkName(storage, snapshot, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return storage + "-" + strings.TrimPrefix(snapshot, "sha256:") + "-" + hex.EncodeToString(sum[:8])
}

// add records that dir, which exists, stands on the chain.
func (h *holds) add(storage, snapshot, dir string) error {
	if snapshot == "" {
		return nil // an image without layers
	}
	name := linkName(storage, snapshot, dir)
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.byLink[name]; ok {
		return nil
	}
	err := os.Symlink(dir, filepath.Join(h.links, name))
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("hold layers: %w", err)
	}
	h.byLink[name] = hold{storage: storage, snapshot: snapshot, dir: dir}
	return nil
}

// drop forgets every hold of dir and returns the chains that it was on.
func (h *holds) drop(dir string) (released []string, _ error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for name, held := range h.byLink {
		if held.dir == dir {
			errs = append(errs, h.forget(name))
			released = append(released, held.snapshot)
		}
	}
	return released, errors.Join(errs...)
}

func (h *holds) forget(name string) error {
	if err := os.Remove(filepath.Join(h.links, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release layers: %w", err)
	}
	delete(h.byLink, name)
	return nil
}

// of is the hold of dir.
func (h *holds) of(dir string) (hold, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, held := range h.byLink {
		if held.dir == dir {
			return held, true
		}
	}
	return hold{}, false
}

func (h *holds) set(snapshots []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	covered := map[string]bool{"": true}
	for _, held := range h.byLink {
		covered[held.snapshot] = true
	}
	h.start = nil
	for _, s := range snapshots {
		if !covered[s] {
			covered[s] = true
			h.start = append(h.start, s)
		}
	}
	h.known = true
}

func (h *holds) ready() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known
}

// Hold tells which chains the existing containers stand on; each call replaces
// the list of the one before. The first one allows garbage collection. Chains
// of root filesystems that this store prepared are held from PrepareRootfs to
// RemoveRootfs whether listed or not.
func (s *Store) Hold(ctx context.Context, snapshots []string) error {
	for _, key := range snapshots {
		if key != "" && !isDigest(key) {
			return errInvalid("hold layers: %q is not the key of a snapshot", key)
		}
	}
	s.holds.set(snapshots)
	s.collectSoon()
	return nil
}

// errNotHeld tells why there is no collection yet.
var errNotHeld = errdefs.ErrFailedPrecondition.WithMessage("garbage collection waits until the containers' layers are known")

// The rest is containerd's interface of a collectible resource.

// ReferenceLabel is empty: no label refers to a rootfs.
func (h *holds) ReferenceLabel() string { return "" }

// StartCollection locks the holds until Finish or Cancel. It never fails: a
// resource that fails here would be left out of the collection, and what it
// holds be removed.
func (h *holds) StartCollection(context.Context) (metadata.CollectionContext, error) {
	h.mu.Lock()
	return (*collection)(h), nil
}

type collection holds

// All sends nothing: a rootfs is no node.
func (c *collection) All(func(gc.Node)) {}

// Leased sends nothing: leases hold content and snapshots themselves.
func (c *collection) Leased(_, _ string, _ func(gc.Node)) {}

// Remove is never called, as All sends nothing.
func (c *collection) Remove(gc.Node) {}

// Active names the snapshots that containers stand on as roots.
func (c *collection) Active(ns string, fn func(gc.Node)) {
	for name, held := range c.byLink {
		if _, err := os.Lstat(held.dir); errors.Is(err, os.ErrNotExist) {
			if (*holds)(c).forget(name) == nil {
				continue
			}
		}
		fn(gc.Node{Type: metadata.ResourceSnapshot, Namespace: ns, Key: held.storage + "/" + held.snapshot})
	}
	for _, snapshot := range c.start {
		for _, driver := range c.drivers {
			fn(gc.Node{Type: metadata.ResourceSnapshot, Namespace: ns, Key: driver + "/" + snapshot})
		}
	}
}

// Cancel ends a collection that failed.
func (c *collection) Cancel() error {
	c.mu.Unlock()
	return nil
}

// Finish is called when the entries are gone; the files follow.
func (c *collection) Finish() error {
	if c.onSwept != nil {
		c.onSwept()
	}
	c.mu.Unlock()
	return nil
}
