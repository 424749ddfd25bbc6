// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/buildkit/snapshot"
	"github.com/opencontainers/go-digest"
)

// BuildKit gives the snapshots of pulled layers names of its own. The store names
// them by chain ID. The two types here translate, so that a layer that was pulled
// before is not unpacked again for a build, nor one that a build unpacked for a
// container.

// outer is the store's name of a snapshot.
func outer(name string) string {
	if chain, ok := snapshot.ParseLayerSnapshotID(name); ok {
		return chain.String()
	}
	return name
}

// inner is BuildKit's name of a snapshot.
func inner(name string) string {
	if chain, err := digest.Parse(name); err == nil {
		return snapshot.LayerSnapshotID(chain)
	}
	return name
}

type layerNames struct{ snapshots.Snapshotter }

func innerInfo(i snapshots.Info, err error) (snapshots.Info, error) {
	i.Name, i.Parent = inner(i.Name), inner(i.Parent)
	return i, err
}

func (s layerNames) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return innerInfo(s.Snapshotter.Stat(ctx, outer(key)))
}

func (s layerNames) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	info.Name, info.Parent = outer(info.Name), outer(info.Parent)
	return innerInfo(s.Snapshotter.Update(ctx, info, fields...))
}

func (s layerNames) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return s.Snapshotter.Usage(ctx, outer(key))
}

func (s layerNames) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return s.Snapshotter.Mounts(ctx, outer(key))
}

func (s layerNames) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.Prepare(ctx, outer(key), outer(parent), opts...)
}

func (s layerNames) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.View(ctx, outer(key), outer(parent), opts...)
}

func (s layerNames) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.Snapshotter.Commit(ctx, outer(name), outer(key), opts...)
}

func (s layerNames) Remove(ctx context.Context, key string) error {
	return s.Snapshotter.Remove(ctx, outer(key))
}

func (s layerNames) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.Snapshotter.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		i, _ = innerInfo(i, nil)
		return fn(ctx, i)
	}, filters...)
}

// leaseNames translates the snapshots that a lease keeps.
type leaseNames struct{ leases.Manager }

func translate(r leases.Resource, to func(string) string) leases.Resource {
	if strings.HasPrefix(r.Type, "snapshots/") {
		r.ID = to(r.ID)
	}
	return r
}

func (l leaseNames) AddResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	return l.Manager.AddResource(ctx, lease, translate(r, outer))
}

func (l leaseNames) DeleteResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	return l.Manager.DeleteResource(ctx, lease, translate(r, outer))
}

func (l leaseNames) ListResources(ctx context.Context, lease leases.Lease) ([]leases.Resource, error) {
	all, err := l.Manager.ListResources(ctx, lease)
	for i := range all {
		all[i] = translate(all[i], inner)
	}
	return all, err
}
