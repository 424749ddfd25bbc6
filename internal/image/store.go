// SPDX-License-Identifier: Apache-2.0

// Package image owns the images and the root filesystems that containers get
// from them: pulling, loading, importing, naming, listing, removing, unpacking
// and mounting. It runs containerd's libraries in process (content store, bolt
// metadata, snapshotters, docker resolver, unpacker). It knows neither
// containers nor the API: its callers pass in which containers use an image.
//
// An image's ID is the digest of its target, the index or manifest that its
// name points to, as in Docker's containerd image store. The image that a
// container is made from is one manifest of that target, chosen by platform.
//
//	<root>/metadata.db             names, leases, labels (bolt, containerd's schema)
//	<root>/content/                blobs by digest, unfinished downloads
//	<root>/snapshots/<driver>/     unpacked layers by chain ID
//	<root>/rootfs/<driver>-<chain>-<hash> → directory of a container's rootfs
//
// A container's writable layer lies in the container's own directory, not in
// the snapshotter, so that creating a container costs no transaction. The
// layers that containers need are derived from the links in rootfs/ and from
// PinSnapshots. The garbage collector starts only after the first call of it, and
// keeps them.
package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	clog "github.com/containerd/log"
	"go.etcd.io/bbolt"

	"holdfast/internal/errs"
)

// namespace is the only namespace used in containerd's metadata.
const namespace = "holdfast"

// lockWait bounds how long Open waits for a database that another process
// holds.
const lockWait = 700 * time.Millisecond

// Options are what Open needs.
type Options struct {
	// Root is the directory that the store owns; it is made when missing.
	Root string
	// Snapshotter is the storage driver for new layers: "overlay2" or
	// "overlayfs", "vfs" or "native". Empty means overlayfs if the kernel and
	// the filesystem support it, else native.
	Snapshotter string
	Registry    Registry
	// Single states that the process opens no other store. The libraries'
	// directory for temporary mounts is global to a process; it is then set to
	// one under Root.
	Single bool
	// Log receives the store's messages and those of the libraries; nil means
	// slog.Default.
	Log *slog.Logger
	// OnEvent is called for create, pull, push, load, save, import, tag, untag
	// and delete. id is the image's ID, or the reference for a pull or push.
	// name is a familiar reference, or the ID if the event is not about a name.
	// attrs are the labels of an image that is in the store.
	OnEvent func(action, id, name string, attrs map[string]string)
}

// env is what every part of the store needs.
type env struct {
	root string // of the store
	log  *slog.Logger
	base context.Context // carries the libraries' logger; never cancelled
}

// ctx adds the namespace and the logger that the libraries use.
func (e env) ctx(ctx context.Context) context.Context {
	return namespaces.WithNamespace(clog.WithLogger(ctx, clog.G(e.base)), namespace)
}

func (e env) path(elem ...string) string {
	return filepath.Join(append([]string{e.root}, elem...)...)
}

// Store is the image store. Its methods may be called concurrently.
//
// It joins its parts for what needs several of them. Each part has its own locks,
// and calls only parts that are named after it here.
type Store struct {
	env
	bolt    *bbolt.DB
	closers []func() error

	*collector
	*describer
	*rootfs
	*remote
	*catalog
	layers   *layers
	contents *contents
	leasing  *leasing
	requests *requests
}

// Open opens the store, and creates it if it doesn't exist. Errors: unavailable
// if another process has it open, invalid argument for an unknown storage
// driver.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	if !filepath.IsAbs(o.Root) {
		return nil, errs.Invalid("image store: root %q is not an absolute path", o.Root)
	}
	e := env{root: o.Root, log: o.Log}
	if e.log == nil {
		e.log = slog.Default()
	}
	if o.OnEvent == nil {
		o.OnEvent = func(string, string, string, map[string]string) {}
	}
	libraryDefault.Do(func() { clog.L = libraryLogger(e.log) })
	e.base = clog.WithLogger(context.Background(), libraryLogger(e.log))
	s := newStore(e, o.OnEvent)
	if err := s.SetRegistry(o.Registry); err != nil {
		return nil, err
	}
	want, err := driverName(o.Snapshotter)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{s.root, s.path("snapshots"), s.path("rootfs"), s.path("content")} {
		if err := os.MkdirAll(dir, 0o710); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	defer func() {
		if err != nil {
			s.closeAll()
		}
	}()

	if err := s.openDatabase(); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.bolt.Close)

	if o.Single {
		if err := s.ownMounts(); err != nil {
			return nil, err
		}
	}
	if err := dropUnnamedIngests(s.path("content")); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	store, err := local.NewStore(s.path("content"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	blobs, ok := store.(blobStore)
	if !ok {
		return nil, fmt.Errorf("image store: %T can't list the blobs that are being written", store)
	}
	if s.layers.drivers, err = s.openDrivers(want); err != nil {
		return nil, err
	}
	if err := s.openMetadata(ctx, blobs); err != nil {
		return nil, err
	}
	s.startCollector()
	return s, nil
}

// newStore joins the parts of a store that is not open yet.
func newStore(e env, onEvent func(action, id, name string, attrs map[string]string)) *Store {
	rq := &requests{wanted: make(chan struct{}, 1)}
	ls := &leasing{env: e, requests: rq}
	ct := &contents{env: e}
	ly := &layers{env: e, contents: ct, leasing: ls}
	ca := &catalog{env: e, contents: ct, layers: ly, requests: rq, onEvent: onEvent}
	ds := &describer{env: e, contents: ct, layers: ly, catalog: ca}
	return &Store{
		env: e, requests: rq, leasing: ls, contents: ct, layers: ly, catalog: ca, describer: ds,
		remote:    &remote{env: e},
		rootfs:    &rootfs{env: e, layers: ly, requests: rq},
		collector: &collector{env: e, requests: rq, contents: ct, layers: ly, catalog: ca, describer: ds},
	}
}

// openMetadata opens the metadata of blobs and layers.
func (s *Store) openMetadata(ctx context.Context, blobs blobStore) error {
	db := metadata.NewDB(s.bolt, noting{blobs}, s.layers.drivers)
	p, err := openPins(s.path("rootfs"), driverNames(s.layers.drivers))
	if err != nil {
		return err
	}
	aside := s.aside()
	if len(aside) > 0 && p.unread == "" {
		p.unread = aside[0]
		s.log.Error("a database of images or layers was damaged and is set aside: layers are not garbage-collected until the file is removed and the daemon is restarted. Remove it when no container is left that was made before", "path", strings.Join(aside, ", "))
	} else if p.unread != "" {
		s.log.Error("an entry is not a link to a container's rootfs: layers are not garbage-collected until the entry is removed and the daemon is restarted", "path", p.unread)
	}
	s.rootfs.pins, s.collector.pins = p, p
	db.RegisterCollectibleResource(resourceRootfs, p)
	if err := db.Init(s.ctx(ctx)); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	if slices.Contains(aside, s.path(databaseFile+damagedSuffix)) {
		if err := s.skipNames(); err != nil {
			return fmt.Errorf("image store: %w", err)
		}
	}
	s.contents.db, s.contents.content, s.contents.blobsOnDisk = db, closing{db.ContentStore()}, blobs
	s.catalog.images = metadata.NewImageStore(db)
	s.leasing.leases = metadata.NewLeaseManager(db)
	if err := s.leasing.dropLeases(s.ctx(ctx)); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	return nil
}

// Close stops the garbage collector and closes the databases. No other method
// may be running.
func (s *Store) Close() error {
	s.collector.stopCollector()
	return s.closeAll()
}

func (s *Store) closeAll() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// Driver is the storage driver of new containers: overlayfs or native.
func (s *Store) Driver() string { return s.layers.driver }
