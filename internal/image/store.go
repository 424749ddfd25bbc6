// Package image owns the images and the root filesystems that containers get
// from them: pulling, loading, importing, naming, listing, removing, unpacking
// and mounting. It runs containerd's libraries in process (content store, bolt
// metadata, snapshotters, docker resolver, unpacker). It knows neither
// containers nor the API: who uses an image is told to it by its callers.
//
// An image's ID is the digest of its target, the index or manifest that its
// name points to, as in Docker's containerd image store. The image that a
// container is made of is one manifest of that target, chosen by platform.
//
//	<root>/metadata.db             names, leases, labels (bolt, containerd's schema)
//	<root>/content/                blobs by digest, unfinished downloads
//	<root>/snapshots/<driver>/     unpacked layers by chain ID
//	<root>/rootfs/<driver>-<chain>-<hash> → directory of a container's rootfs
//
// A container's writable layer lies in the container's own directory, not in
// the snapshotter, so that creating a container costs no transaction. What
// containers need is derived from the links in rootfs/ and from Hold, and the
// garbage collector, which starts only after Hold, keeps it.
package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	clog "github.com/containerd/log"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// namespace is containerd's name space inside the metadata. There is one.
const namespace = "holdfast"

// lockWait bounds how long Open waits for a database that another process
// holds.
const lockWait = 700 * time.Millisecond

// Options are what Open needs.
type Options struct {
	// Root is the directory that the store owns; it is made when missing.
	Root string
	// Snapshotter is the storage driver for new layers: "overlay2" or
	// "overlayfs", "vfs" or "native". Empty takes overlayfs where the kernel
	// and the filesystem can carry it, native otherwise.
	Snapshotter string
	Registry    Registry
	// Single says that the process has no other store. Where layers are mounted
	// to be unpacked is one place in a process: it is then under Root.
	Single bool
	// Log takes the store's own words and those of the libraries; nil is
	// slog.Default.
	Log *slog.Logger
	// OnEvent is told of pull, load, import, tag, untag, delete and prune. id
	// is the image's ID, or the reference for a pull; name is familiar.
	OnEvent func(action, id, name string, attrs map[string]string)
}

// Store is the image store. Its methods may be called at the same time.
type Store struct {
	root    string
	driver  string
	log     *slog.Logger
	onEvent func(action, id, name string, attrs map[string]string)
	base    context.Context // carries the libraries' logger; never cancelled

	bolt    *bbolt.DB
	db      *metadata.DB
	content content.Store
	images  images.Store
	leases  leases.Manager
	drivers map[string]snapshots.Snapshotter
	closers []func() error

	registry atomic.Pointer[hosts]
	blobs    keyLock

	// names serializes changes of image records.
	names  sync.Mutex
	docs   documents
	lowers lowerDirs
	holds  *holds
	gc     collector
}

// Open opens or makes the store. Errors: unavailable when another process has
// it open, invalid argument for an unknown storage driver.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	if !filepath.IsAbs(o.Root) {
		return nil, errInvalid("image store: root %q is not an absolute path", o.Root)
	}
	s := &Store{root: o.Root, log: o.Log, onEvent: o.OnEvent}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.onEvent == nil {
		s.onEvent = func(string, string, string, map[string]string) {}
	}
	libraryDefault.Do(func() { clog.L = libraryLogger(s.log) })
	s.base = clog.WithLogger(context.Background(), libraryLogger(s.log))
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

	s.bolt, err = bbolt.Open(s.path("metadata.db"), 0o600, &bbolt.Options{
		Timeout:      lockWait,
		FreelistType: bbolt.FreelistMapType,
		NoStatistics: true,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errdefs.ErrUnavailable.WithMessage(fmt.Sprintf(
			"image store %s is in use by another process; stop it or choose another data root", s.root))
	}
	if err != nil {
		return nil, fmt.Errorf("image store: open %s: %w", s.path("metadata.db"), err)
	}
	s.closers = append(s.closers, s.bolt.Close)

	if o.Single {
		if err := s.ownMounts(); err != nil {
			return nil, err
		}
	}
	// What a dead process was writing, whole or not, nobody continues: its
	// leases end here too. Half a download is resumed within one pull.
	if err := os.RemoveAll(s.path("content", "ingest")); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	blobs, err := local.NewStore(s.path("content"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if s.drivers, err = s.openDrivers(want); err != nil {
		return nil, err
	}
	s.db = metadata.NewDB(s.bolt, blobs, s.drivers)
	if s.holds, err = openHolds(s.path("rootfs"), driverNames(s.drivers)); err != nil {
		return nil, err
	}
	s.db.RegisterCollectibleResource(resourceRootfs, s.holds)
	if err := s.db.Init(s.ctx(ctx)); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	s.content = s.db.ContentStore()
	s.images = metadata.NewImageStore(s.db)
	s.leases = metadata.NewLeaseManager(s.db)
	if err := s.dropLeases(s.ctx(ctx)); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	s.startCollector()
	return s, nil
}

// Close ends the garbage collector and closes the databases. Nothing else may
// be running.
func (s *Store) Close() error {
	s.stopCollector()
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
func (s *Store) Driver() string { return s.driver }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// ctx gives the libraries their name space and their logger.
func (s *Store) ctx(ctx context.Context) context.Context {
	return namespaces.WithNamespace(clog.WithLogger(ctx, clog.G(s.base)), namespace)
}

func (s *Store) snapshotter(storage string) (snapshots.Snapshotter, error) {
	sn := s.db.Snapshotter(storage)
	if sn == nil {
		return nil, errUnknownDriver(storage)
	}
	return sn, nil
}
