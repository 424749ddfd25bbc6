// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"context"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Snapshots is the daemon's snapshotter.
func (c *Client) Snapshots() snapshots.Snapshotter { return remoteSnapshots{c} }

type remoteSnapshots struct{ *Client }

func (s remoteSnapshots) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, _, err := ask(ctx, s.Client, snapshotStat, key)
	return info, err
}

func (s remoteSnapshots) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	info, _, err := ask(ctx, s.Client, snapshotUpdate, updated[snapshots.Info]{info, fields})
	return info, err
}

func (s remoteSnapshots) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	u, _, err := ask(ctx, s.Client, snapshotUsage, key)
	return u, err
}

func (s remoteSnapshots) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	m, _, err := ask(ctx, s.Client, snapshotMounts, key)
	return m, err
}

func (s remoteSnapshots) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.make(ctx, snapshotPrepare, snapshot{Key: key, Parent: parent}, opts)
}

func (s remoteSnapshots) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.make(ctx, snapshotView, snapshot{Key: key, Parent: parent}, opts)
}

// make makes an active snapshot. If the call was repeated and the snapshot exists,
// the call before made it.
func (s remoteSnapshots) make(ctx context.Context, method call[snapshot, []mount.Mount], p snapshot, opts []snapshots.Opt) ([]mount.Mount, error) {
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, err
	}
	p.Labels = labels
	m, again, err := ask(ctx, s.Client, method, p)
	if again && errdefs.IsAlreadyExists(err) {
		return s.Mounts(ctx, p.Key)
	}
	return m, err
}

// Commit commits a snapshot. A repeated commit finds the name and not the key.
func (s remoteSnapshots) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	labels, err := labelsOf(opts)
	if err != nil {
		return err
	}
	_, again, err := ask(ctx, s.Client, snapshotCommit, snapshot{Key: key, Name: name, Labels: labels})
	if again && (errdefs.IsNotFound(err) || errdefs.IsAlreadyExists(err)) {
		if _, keyErr := s.Stat(ctx, key); errdefs.IsNotFound(keyErr) {
			if _, nameErr := s.Stat(ctx, name); nameErr == nil {
				return nil
			}
		}
	}
	return err
}

func (s remoteSnapshots) Remove(ctx context.Context, key string) error {
	_, again, err := ask(ctx, s.Client, snapshotRemove, key)
	if again && errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (s remoteSnapshots) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	all, _, err := ask(ctx, s.Client, snapshotWalk, filters)
	if err != nil {
		return err
	}
	for _, info := range all {
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

func (s remoteSnapshots) Close() error { return nil }

func labelsOf(opts []snapshots.Opt) (map[string]string, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	return info.Labels, nil
}

// Adopt is Layers.Adopt. It may be repeated.
func (c *Client) Adopt(ctx context.Context, chain digest.Digest, key string) error {
	_, _, err := ask(ctx, c, layerAdopt, adopted{chain, key})
	return err
}

// Built is Layers.Built.
func (c *Client) Built(ctx context.Context, id digest.Digest) error {
	_, _, err := ask(ctx, c, imageBuilt, id)
	return err
}

// Connect is Networks.Connect.
func (c *Client) Connect(ctx context.Context, id, network string) (string, error) {
	path, _, err := ask(ctx, c, networkConnect, connected{id, network})
	return path, err
}

// Names is Networks.Names. A daemon of an earlier release has no networks with names.
func (c *Client) Names(ctx context.Context, id string) (Names, error) {
	n, _, err := ask(ctx, c, networkNames, id)
	if errdefs.IsNotImplemented(err) {
		return Names{}, nil
	}
	return n, err
}

// Disconnect is Networks.Disconnect.
func (c *Client) Disconnect(ctx context.Context, id string) error {
	_, _, err := ask(ctx, c, networkDisconnect, id)
	return err
}
