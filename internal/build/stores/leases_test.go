// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// kept returns what a lease keeps, by the daemon's own words. ok is false if there is no
// such lease.
func (d *daemon) kept(id string) (kept []string, ok bool) {
	d.t.Helper()
	ctx := namespaces.WithNamespace(context.Background(), "test")
	all, err := d.stores.Leases.List(ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	if !slices.ContainsFunc(all, func(l leases.Lease) bool { return l.ID == id }) {
		return nil, false
	}
	resources, err := d.stores.Leases.ListResources(ctx, leases.Lease{ID: id})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, r := range resources {
		kept = append(kept, r.Type+" "+r.ID)
	}
	return kept, true
}

func TestLeasesAreMadeWithTheFirstCallThatNeedsThem(t *testing.T) {
	blob := digest.FromString("text")
	desc := ocispec.Descriptor{Digest: blob, Size: 4}
	for _, c := range []struct {
		name string
		use  func(ctx context.Context, c *Client, blobs content.Store) error
		made bool
		kept []string
	}{
		{"nothing", func(context.Context, *Client, content.Store) error { return nil }, false, nil},
		{"a resource", func(ctx context.Context, c *Client, _ content.Store) error {
			return c.Leases().AddResource(ctx, leases.Lease{ID: "one"}, leases.Resource{ID: blob.String(), Type: "content"})
		}, true, []string{"content " + blob.String()}},
		{"a resource twice", func(ctx context.Context, c *Client, _ content.Store) error {
			for range 2 {
				if err := c.Leases().AddResource(ctx, leases.Lease{ID: "one"}, leases.Resource{ID: blob.String(), Type: "content"}); err != nil {
					return err
				}
			}
			return nil
		}, true, []string{"content " + blob.String()}},
		{"a snapshot", func(ctx context.Context, c *Client, _ content.Store) error {
			_, err := c.Snapshots().Prepare(ctx, "key", "")
			return err
		}, true, []string{"snapshots/native key"}},
		{"a blob that exists", func(ctx context.Context, c *Client, blobs content.Store) error {
			_, err := blobs.Writer(ctx, content.WithRef("again"), content.WithDescriptor(desc))
			if errdefs.IsAlreadyExists(err) {
				return nil
			}
			return err
		}, true, []string{"content " + blob.String()}},
		{"a new blob", func(ctx context.Context, _ *Client, blobs content.Store) error {
			return content.WriteBlob(ctx, blobs, "new", strings.NewReader("new"), ocispec.Descriptor{Digest: digest.FromString("new"), Size: 3})
		}, true, []string{"content " + digest.FromString("new").String()}},
		{"a read", func(ctx context.Context, _ *Client, blobs content.Store) error {
			_, err := blobs.Info(ctx, blob)
			return err
		}, false, nil},
		{"its end", func(ctx context.Context, c *Client, _ content.Store) error {
			return c.Leases().Delete(ctx, leases.Lease{ID: "one"})
		}, false, nil},
		{"its end with a collection", func(ctx context.Context, c *Client, _ content.Store) error {
			return c.Leases().Delete(ctx, leases.Lease{ID: "one"}, leases.SynchronousDelete)
		}, false, nil},
	} {
		for _, earlier := range []bool{false, true} {
			name := c.name
			if earlier {
				name += " with a daemon of an earlier release"
			}
			t.Run(name, func(t *testing.T) {
				d := newDaemon(t)
				if earlier { // it takes the call for one without a new lease
					d.server.stores.LeaseWith = d.stores.Leases.AddResource
				}
				ctx := context.Background()
				c0 := d.client()
				blobs := c0.Content(filepath.Join(d.dir, "content"))
				if err := content.WriteBlob(ctx, blobs, "ref", strings.NewReader("text"), desc); err != nil {
					t.Fatal(err)
				}
				lease, err := c0.Leases().Create(ctx, leases.WithID("one"), leases.WithLabels(map[string]string{"a": "b"}))
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := d.kept("one"); ok {
					t.Error("the lease was made before anything needed it")
				}
				if err := c.use(leases.WithLease(ctx, lease.ID), c0, blobs); err != nil {
					t.Fatal(err)
				}
				kept, made := d.kept("one")
				if made != c.made || !slices.Equal(kept, c.kept) {
					t.Errorf("the lease exists: %v, and keeps %v; want %v, %v", made, kept, c.made, c.kept)
				}
				if !made {
					return
				}
				all, err := c0.Leases().List(ctx)
				if err != nil || len(all) != 1 || all[0].Labels["a"] != "b" {
					t.Errorf("%+v, %v", all, err)
				}
				if err := c0.Leases().Delete(ctx, lease); err != nil {
					t.Fatal(err)
				}
				if _, ok := d.kept("one"); ok {
					t.Error("the lease was not deleted")
				}
			})
		}
	}
}
