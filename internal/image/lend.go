// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"holdfast/internal/failpoint"
)

// Namespace is the namespace of the store in containerd's metadata, which its
// borrowers use.
const Namespace = namespace

// DanglingName is the prefix of the name under which a build records an image that it
// gives no name.
const DanglingName = "<none>"

// Lent are the parts of the store that builds use. What a build makes is kept by
// leases of the build, which no other part of the store deletes.
type Lent struct {
	Content   content.Store
	Snapshots snapshots.Snapshotter
	Leases    leases.Manager
	// LeaseWith adds a resource to a lease, which it makes if it does not exist.
	LeaseWith func(context.Context, leases.Lease, leases.Resource) error
	Images    images.Store
	// Dir is the directory of the blobs, Database the path of the database.
	Dir, Database string
}

// Lend returns the parts.
func (s *Store) Lend() (Lent, error) {
	sn, err := s.layers.snapshotter(s.layers.driver)
	if err != nil {
		return Lent{}, err
	}
	lm := lentLeases{s.leasing.leases, s}
	return Lent{s.contents.content, sn, lm, lm.createWith, lentNames{s.catalog}, s.path("content"), s.path(databaseFile)}, nil
}

// Hosts returns the hosts of registries as a pull reaches them. Credentials are not
// among them. Error: invalid argument.
func Hosts(r Registry) (docker.RegistryHosts, error) {
	h, err := newHosts(r)
	if err != nil {
		return nil, err
	}
	return h.hostsFor(nil), nil
}

// LayerApplier returns what unpacks layers that a build has pulled, from the blobs in
// p and within the limits of a pull.
func LayerApplier(p content.Provider) diff.Applier { return lentApplier{applier{p, newProgress(nil)}} }

type lentApplier struct{ applier }

func (a lentApplier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	d, err := a.applier.Apply(ctx, desc, mounts, opts...)
	return d, unpackError(err)
}

// Documents returns a store for a builder, which reads manifests and configs of
// registries whole. It refuses those that a pull refuses.
func Documents(s content.Store) content.Store { return smallDocuments{s} }

// lentLeases has data collected that a lease has kept, when it ends.
type lentLeases struct {
	leases.Manager
	store *Store
}

func (l lentLeases) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	if err := l.Manager.Delete(ctx, lease); err != nil {
		return err
	}
	if !o.Synchronous {
		l.store.requests.collectSoon()
		return nil
	}
	return l.store.Collect(ctx)
}

// createWith adds a resource to a lease, which it makes if it does not exist, in one
// transaction.
func (l lentLeases) createWith(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	return l.store.contents.db.Update(func(tx *bbolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		_, err := l.Manager.Create(ctx, leases.WithID(lease.ID), leases.WithLabels(lease.Labels))
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		return l.Manager.AddResource(ctx, lease, r)
	})
}

// lentNames changes the names of images as the other methods of the store do: an
// image that loses its name is kept, and clients get events.
type lentNames struct{ catalog *catalog }

func (n lentNames) Get(ctx context.Context, name string) (images.Image, error) {
	return n.catalog.images.Get(ctx, name)
}

func (n lentNames) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	return n.catalog.images.List(ctx, filters...)
}

func (n lentNames) Create(ctx context.Context, img images.Image) (images.Image, error) {
	return n.record(ctx, img)
}

func (n lentNames) Update(ctx context.Context, img images.Image, _ ...string) (images.Image, error) {
	return n.record(ctx, img)
}

func (n lentNames) record(ctx context.Context, img images.Image) (images.Image, error) {
	if strings.HasPrefix(img.Name, danglingPrefix) {
		return img, n.catalog.recordUnnamed(ctx, plain(img.Target))
	}
	changed, err := n.catalog.record(ctx, img.Name, img.Target)
	if err != nil {
		return images.Image{}, err
	}
	failpoint.Here("build.named")
	if changed {
		n.catalog.emitEvent(ctx, "tag", img.Target.Digest.String(), familiar(img.Name), img.Target)
	}
	return n.catalog.images.Get(ctx, img.Name)
}

// Delete is refused, because a build removes no image.
func (n lentNames) Delete(context.Context, string, ...images.DeleteOpt) error {
	return errdefs.ErrNotImplemented.WithMessage("a build removes no images")
}

// Usage returns how many bytes blobs and unpacked layers take on disk.
func (s *Store) Usage(ctx context.Context) (int64, error) { return s.layers.diskUsage(s.ctx(ctx)) }

// Adopt makes a committed snapshot the layer with a chain ID, unless the store has
// one already. ErrNotFound: there is no such snapshot.
func (s *Store) Adopt(ctx context.Context, chain digest.Digest, key string) error {
	ctx = s.ctx(ctx)
	if err := chain.Validate(); err != nil {
		return fmt.Errorf("adopt a layer: %q: %w: %w", chain, err, errdefs.ErrInvalidArgument)
	}
	sn, err := s.layers.snapshotter(s.layers.driver)
	if err != nil {
		return err
	}
	if _, err := sn.Stat(ctx, chain.String()); !errdefs.IsNotFound(err) {
		return err
	}
	info := snapshots.Info{Name: key, Labels: map[string]string{chainLabel: chain.String()}}
	if _, err := sn.Update(ctx, info, "labels."+chainLabel); err != nil {
		return fmt.Errorf("adopt layer %s: %w", chain, err)
	}
	failpoint.Here("build.adopted")
	s.layers.adoptions.put(s.layers.driver, chain.String(), key)
	return nil
}

// Built completes an image that a build has written: it makes the image's configs
// hold the layers that are unpacked, and emits the event.
func (s *Store) Built(ctx context.Context, id digest.Digest) error {
	ctx = s.ctx(ctx)
	info, err := s.contents.content.Info(ctx, id)
	if err != nil {
		return fmt.Errorf("built image %s: %w", id, err)
	}
	target := ocispec.Descriptor{Digest: id, Size: info.Size, MediaType: ocispec.MediaTypeImageManifest}
	if all, err := s.catalog.images.List(ctx, "target.digest=="+id.String()); err != nil {
		return err
	} else if len(all) > 0 {
		target = all[0].Target
	}
	variants, err := s.contents.variants(ctx, target)
	if err != nil {
		return fmt.Errorf("built image %s: %w", id, err)
	}
	sn, err := s.layers.snapshotter(s.layers.driver)
	if err != nil {
		return err
	}
	for _, v := range variants {
		if v.manifest == nil || v.snapshot() == "" {
			continue
		}
		layer, err := sn.Stat(ctx, v.snapshot())
		if errdefs.IsNotFound(err) {
			continue // it is unpacked for the first container
		}
		if err != nil {
			return err
		}
		label := "containerd.io/gc.ref.snapshot." + s.layers.driver
		if old, err := s.contents.content.Info(ctx, v.manifest.Config.Digest); err == nil && old.Labels[label] == layer.Name {
			continue // it was built before
		}
		config := content.Info{Digest: v.manifest.Config.Digest, Labels: map[string]string{label: layer.Name}}
		if _, err := s.contents.content.Update(ctx, config, "labels."+label); err != nil {
			return fmt.Errorf("built image %s: %w", id, err)
		}
	}
	failpoint.Here("build.held")
	s.catalog.emitEvent(ctx, "build", id.String(), id.String(), target)
	return nil
}
