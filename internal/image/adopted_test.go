// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// lend lends the stores to a build. held is ctx with the build's lease.
func lend(t *testing.T, s *Store) (ctx, held context.Context, lent Lent) {
	t.Helper()
	lent, err := s.Lend()
	if err != nil {
		t.Fatal(err)
	}
	ctx = s.ctx(context.Background())
	lease, err := lent.Leases.Create(ctx, leases.WithID("a-build"))
	if err != nil {
		t.Fatal(err)
	}
	return ctx, leases.WithLease(ctx, lease.ID), lent
}

// A process that is killed while it makes a snapshot may leave its directory, and the next
// snapshot gets the same number.
func TestDirectoryOfASnapshotThatWasNotRecordedIsNoObstacle(t *testing.T) {
	root := t.TempDir()
	s, err := Open(context.Background(), Options{Root: root, Snapshotter: Native})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, ctx, lent := lend(t, s)
	m, err := lent.Snapshots.Prepare(ctx, "first", "")
	if err != nil {
		t.Fatal(err)
	}
	dir, id := filepath.Split(m[0].Source)
	n, err := strconv.Atoi(id)
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(dir, strconv.Itoa(n+1))
	if err := os.MkdirAll(filepath.Join(next, "left"), 0o700); err != nil {
		t.Fatal(err)
	}
	if m, err = lent.Snapshots.Prepare(ctx, "second", ""); err != nil || m[0].Source != next {
		t.Fatalf("%v, %v", m, err)
	}
	if left, err := os.ReadDir(next); err != nil || len(left) > 0 {
		t.Errorf("it has what another had left: %v, %v", left, err)
	}
}

// TestSnapshotOfABuildStepBecomesALayer: it is found by the layer's chain ID, also by
// the next daemon, and is kept as long as a lease or a container has it.
func TestSnapshotOfABuildStepBecomesALayer(t *testing.T) {
	root := t.TempDir()
	open := func() *Store {
		s, err := Open(context.Background(), Options{Root: root, Snapshotter: Native})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	defer func() { s.Close() }()
	ctx, held, lent := lend(t, s)
	m, err := lent.Snapshots.Prepare(held, "active", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m[0].Source, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lent.Snapshots.Commit(held, "step", "active"); err != nil {
		t.Fatal(err)
	}
	chain := digest.Digest("sha256:" + strings.Repeat("ab", 32))
	if err := s.Adopt(ctx, chain, "none"); !errdefs.IsNotFound(err) {
		t.Errorf("a snapshot that does not exist: %v", err)
	}
	if err := s.Adopt(ctx, chain, "step"); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.layers.unpacked(ctx, Native, chain.String()); !ok || err != nil {
		t.Errorf("the layer is not found: %v", err)
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	dir := filepath.Join(t.TempDir(), "container")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.rootfs.pins.add(Native, chain.String(), dir); err != nil {
		t.Fatal(err)
	}
	if err := s.PinSnapshots(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if lent, err = s.Lend(); err != nil {
		t.Fatal(err)
	}
	exists := func() bool {
		_, err := lent.Snapshots.Stat(ctx, chain.String())
		return err == nil
	}
	if !exists() {
		t.Error("the next daemon does not find the layer")
	}
	if err := lent.Leases.Delete(ctx, leases.Lease{ID: "a-build"}, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	if !exists() {
		t.Error("the layer of a container was collected")
	}
	if _, err := s.rootfs.pins.drop(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	if exists() {
		t.Error("a layer that nothing has was not collected")
	}
}
