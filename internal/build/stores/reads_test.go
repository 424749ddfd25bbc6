// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"context"
	"maps"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// counted counts the calls of a daemon by method.
func (d *daemon) counted(method string) *atomic.Int64 {
	var n atomic.Int64
	count := func(path string) bool {
		if path == "/"+method {
			n.Add(1)
		}
		return false
	}
	d.between.Store(&count)
	return &n
}

func TestAnswersAreRememberedWhileTheDatabaseIsUnchanged(t *testing.T) {
	d := newDaemon(t)
	asked := d.counted("content.info")
	c := d.client()
	c.Remember(filepath.Join(d.dir, "meta.db"))
	blobs := c.Content(filepath.Join(d.dir, "content"))
	ctx, daemonCtx := context.Background(), namespaces.WithNamespace(context.Background(), "test")
	sum := digest.FromString("text")
	if _, err := blobs.Info(ctx, sum); !errdefs.IsNotFound(err) {
		t.Fatalf("%v, want not found", err)
	}
	if err := content.WriteBlob(ctx, blobs, "ref", strings.NewReader("text"), ocispec.Descriptor{Digest: sum, Size: 4}); err != nil {
		t.Fatal(err)
	}
	info := func(calls int64, labels map[string]string) {
		t.Helper()
		before := asked.Load()
		got, err := blobs.Info(ctx, sum)
		if err != nil || got.Size != 4 || !maps.Equal(got.Labels, labels) {
			t.Fatalf("%+v, %v; want the labels %v", got, err, labels)
		}
		if n := asked.Load() - before; n != calls {
			t.Fatalf("the daemon was asked %d times, want %d", n, calls)
		}
	}
	info(1, nil)
	info(0, nil)
	for _, value := range []string{"1", "2", "3"} { // both meta pages in turns
		if _, err := d.stores.Content.Update(daemonCtx, content.Info{Digest: sum, Labels: map[string]string{"a": value}}, "labels.a"); err != nil {
			t.Fatal(err)
		}
		info(1, map[string]string{"a": value})
		info(0, map[string]string{"a": value})
	}
	d.stop()
	info(0, map[string]string{"a": "3"})
	d.start()
	if err := d.stores.Content.Delete(daemonCtx, sum); err != nil {
		t.Fatal(err)
	}
	if _, err := blobs.Info(ctx, sum); !errdefs.IsNotFound(err) {
		t.Fatalf("%v, want not found", err)
	}
}

func TestOneCallAsksForAllBlobsAfterAChange(t *testing.T) {
	d := newDaemon(t)
	c := d.client()
	c.Remember(filepath.Join(d.dir, "meta.db"))
	blobs := c.Content(filepath.Join(d.dir, "content"))
	ctx, daemonCtx := context.Background(), namespaces.WithNamespace(context.Background(), "test")
	var sums []digest.Digest
	for _, text := range []string{"1", "2", "3"} {
		sum := digest.FromString(text)
		sums = append(sums, sum)
		if err := content.WriteBlob(ctx, blobs, text, strings.NewReader(text), ocispec.Descriptor{Digest: sum, Size: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := blobs.Info(ctx, sum); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.stores.Content.Delete(daemonCtx, sums[0]); err != nil {
		t.Fatal(err)
	}
	together := d.counted("content.infos")
	for _, sum := range sums[1:] {
		if info, err := blobs.Info(ctx, sum); err != nil || info.Digest != sum {
			t.Errorf("%+v, %v", info, err)
		}
	}
	if together.Load() != 1 {
		t.Errorf("%d calls ask for all", together.Load())
	}
	one := d.counted("content.info")
	if _, err := blobs.Info(ctx, sums[1]); err != nil || one.Load() != 0 {
		t.Errorf("%v after %d calls", err, one.Load())
	}
	if _, err := blobs.Info(ctx, sums[0]); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
	delete(d.server.methods, "content.infos") // a daemon of an earlier release
	if _, err := d.stores.Content.Update(daemonCtx, content.Info{Digest: sums[1], Labels: map[string]string{"a": "b"}}, "labels.a"); err != nil {
		t.Fatal(err)
	}
	if info, err := blobs.Info(ctx, sums[1]); err != nil || info.Labels["a"] != "b" {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestNothingIsRememberedOfAFileThatIsNoDatabase(t *testing.T) {
	d := newDaemon(t)
	asked := d.counted("snapshot.stat")
	c := d.client()
	c.Remember(filepath.Join(d.dir, "none.db"))
	if _, err := c.Snapshots().Prepare(context.Background(), "key", ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.Snapshots().Stat(context.Background(), "key"); err != nil {
			t.Fatal(err)
		}
	}
	if asked.Load() != 2 {
		t.Errorf("the daemon was asked %d times", asked.Load())
	}
}

func TestLabelsThatAreRightAreNotWritten(t *testing.T) {
	d := newDaemon(t)
	updated := d.counted("content.update")
	c := d.client()
	blobs := c.Content(filepath.Join(d.dir, "content"))
	ctx := context.Background()
	sum := digest.FromString("text")
	if err := content.WriteBlob(ctx, blobs, "ref", strings.NewReader("text"), ocispec.Descriptor{Digest: sum, Size: 4}, content.WithLabels(map[string]string{"a": "1"})); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		labels map[string]string
		fields []string
		writes bool
		want   map[string]string
	}{
		{"the same", map[string]string{"a": "1"}, []string{"labels.a"}, false, map[string]string{"a": "1"}},
		{"all the same", map[string]string{"a": "1"}, []string{"labels"}, false, map[string]string{"a": "1"}},
		{"none to delete", nil, []string{"labels.b"}, false, map[string]string{"a": "1"}},
		{"another value", map[string]string{"a": "2"}, []string{"labels.a"}, true, map[string]string{"a": "2"}},
		{"all others", map[string]string{"b": "1"}, []string{"labels"}, true, map[string]string{"b": "1"}},
		{"one to delete", nil, []string{"labels.b"}, true, map[string]string{}},
		{"no field named", map[string]string{"a": "1"}, nil, true, map[string]string{"a": "1"}},
	} {
		before := updated.Load()
		got, err := blobs.Update(ctx, content.Info{Digest: sum, Labels: c.labels}, c.fields...)
		if err != nil || !maps.Equal(got.Labels, c.want) {
			t.Errorf("%s: %v, %v; want the labels %v", c.name, got.Labels, err, c.want)
		}
		if wrote := updated.Load() > before; wrote != c.writes {
			t.Errorf("%s: written: %v, want %v", c.name, wrote, c.writes)
		}
	}
}
