// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
)

// daemon is a server over real stores in a directory.
type daemon struct {
	t      *testing.T
	dir    string
	stores Stores
	server *Server
	// between is called before each call and says whether the client gets no answer.
	between atomic.Pointer[func(path string) bool]
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: t.TempDir()}
	db, err := bbolt.Open(filepath.Join(d.dir, "meta.db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	blobs, err := local.NewStore(filepath.Join(d.dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	sn, err := native.NewSnapshotter(filepath.Join(d.dir, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	meta := metadata.NewDB(db, blobs, map[string]snapshots.Snapshotter{"native": sn})
	if err := meta.Init(context.Background()); err != nil {
		t.Fatal(err)
	}
	d.stores = Stores{
		Content: meta.ContentStore(), Snapshots: meta.Snapshotter("native"), Leases: metadata.NewLeaseManager(meta), Images: metadata.NewImageStore(meta),
		Layers: nowhere{}, Networks: nowhere{},
		LeaseWith: func(ctx context.Context, l leases.Lease, r leases.Resource) error {
			lm := metadata.NewLeaseManager(meta)
			if _, err := lm.Create(ctx, leases.WithID(l.ID), leases.WithLabels(l.Labels)); err != nil && !errdefs.IsAlreadyExists(err) {
				return err
			}
			return lm.AddResource(ctx, l, r)
		},
		Usage:  func(context.Context) (int64, error) { return 42, nil },
		Config: func() Config { return Config{Driver: "native"} },
	}
	d.start()
	t.Cleanup(d.stop)
	return d
}

type nowhere struct{}

func (nowhere) Adopt(context.Context, digest.Digest, string) error { return errdefs.ErrNotFound }
func (nowhere) Built(context.Context, digest.Digest) error         { return nil }
func (nowhere) Connect(_ context.Context, id, network string) (string, error) {
	return "/" + id + network, nil
}
func (nowhere) Names(_ context.Context, id string) (Names, error) { return Names{View: id}, nil }
func (nowhere) Disconnect(context.Context, string) error          { return nil }

func (d *daemon) socket() string { return filepath.Join(d.dir, "s") }

func (d *daemon) start() {
	d.t.Helper()
	if err := os.RemoveAll(d.socket()); err != nil {
		d.t.Fatal(err)
	}
	l, err := net.Listen("unix", d.socket())
	if err != nil {
		d.t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	d.server = NewServer(d.stores, slog.New(slog.DiscardHandler))
	inner := d.server.http.Handler
	d.server.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if drop := d.between.Load(); drop != nil && (*drop)(r.URL.Path) {
			inner.ServeHTTP(&lost{header: http.Header{}}, r)
			panic(http.ErrAbortHandler) // the daemon dies before it answers
		}
		inner.ServeHTTP(w, r)
	})
	go func(s *Server) { _ = s.Serve(l) }(d.server)
}

func (d *daemon) stop() { _ = d.server.Shutdown(context.Background()) }

// lost is an answer that nobody gets.
type lost struct{ header http.Header }

func (l *lost) Header() http.Header         { return l.header }
func (l *lost) Write(p []byte) (int, error) { return len(p), nil }
func (l *lost) WriteHeader(int)             {}

func (d *daemon) client() *Client { return NewClient(d.socket(), "test") }

// diesOnce makes the daemon die once at each method, after the method's effect.
func (d *daemon) diesOnce() {
	died := map[string]bool{}
	drop := func(path string) bool {
		if died[path] {
			return false
		}
		died[path] = true
		return true
	}
	d.between.Store(&drop)
}

func TestCallsHaveTheirEffectOnceAlsoIfADaemonDies(t *testing.T) {
	for _, dies := range []bool{false, true} {
		t.Run(fmt.Sprintf("dies=%v", dies), func(t *testing.T) {
			d := newDaemon(t)
			if dies {
				d.diesOnce()
			}
			useAll(t, d, d.client())
		})
	}
}

func useAll(t *testing.T, d *daemon, c *Client) {
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lm := c.Leases()
	lease, err := lm.Create(ctx, leases.WithID("one"), leases.WithLabels(map[string]string{"a": "b"}))
	must(err)
	ctx = leases.WithLease(ctx, lease.ID)

	sn := c.Snapshots()
	m, err := sn.Prepare(ctx, "active", "", snapshots.WithLabels(map[string]string{"containerd.io/snapshot/x": "y"}))
	must(err)
	if len(m) != 1 || os.WriteFile(filepath.Join(m[0].Source, "file"), []byte("text"), 0o600) != nil {
		t.Fatal(m)
	}
	must(sn.Commit(ctx, "layer", "active"))
	_, err = sn.View(ctx, "view", "layer")
	must(err)
	info, err := sn.Stat(ctx, "layer")
	must(err)
	if info.Kind != snapshots.KindCommitted {
		t.Errorf("%+v", info)
	}
	must(sn.Remove(ctx, "view"))
	var names []string
	must(sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error { names = append(names, i.Name); return nil }))
	if len(names) != 1 || names[0] != "layer" {
		t.Errorf("%v", names)
	}
	must(lm.AddResource(ctx, lease, leases.Resource{ID: "layer", Type: "snapshots/native"}))
	all, err := lm.ListResources(ctx, lease)
	must(err)
	if len(all) != 1 {
		t.Errorf("%v", all)
	}

	blobs := c.Content(filepath.Join(d.dir, "content"))
	text := bytes.Repeat([]byte("0123456789"), 1<<20)
	sum := digest.FromBytes(text)
	w, err := blobs.Writer(ctx, content.WithRef("blob"), content.WithDescriptor(ocispec.Descriptor{Digest: sum, Size: int64(len(text))}))
	must(err)
	_, err = io.Copy(w, bytes.NewReader(text))
	must(err)
	if w.Digest() != sum {
		t.Errorf("digest %s before the commit, want %s", w.Digest(), sum)
	}
	must(w.Commit(ctx, int64(len(text)), sum, content.WithLabels(map[string]string{"k": "v"})))
	must(w.Close())
	r, err := blobs.ReaderAt(ctx, ocispec.Descriptor{Digest: sum})
	must(err)
	got, err := io.ReadAll(content.NewReader(r))
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	r.Close()
	if i, err := blobs.Info(ctx, sum); err != nil || i.Labels["k"] != "v" {
		t.Errorf("%+v, %v", i, err)
	}

	im := c.Images()
	_, err = im.Create(ctx, images.Image{Name: "name", Target: ocispec.Descriptor{MediaType: "x", Digest: sum, Size: int64(len(text))}})
	must(err)
	if list, err := im.List(ctx); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	must(im.Delete(ctx, "name"))
	must(lm.Delete(ctx, lease))
	if n, err := c.Usage(ctx); n != 42 || err != nil {
		t.Error(n, err)
	}
	if n, err := c.Names(ctx, "id"); n.View != "id" || err != nil {
		t.Error(n, err)
	}
	if path, err := c.Connect(ctx, "id", "net"); path != "/idnet" || err != nil {
		t.Error(path, err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	d := newDaemon(t)
	c := d.client()
	ctx := context.Background()
	if _, err := c.Snapshots().Stat(ctx, "none"); !errdefs.IsNotFound(err) {
		t.Errorf("%v is no ErrNotFound", err)
	}
	if _, err := c.Content("").ReaderAt(ctx, ocispec.Descriptor{Digest: "sha256:../../etc/passwd"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v is no ErrInvalidArgument", err)
	}
	var result none
	if _, err := c.send(ctx, "of.a.later.release", []byte("{}"), &result); !errdefs.IsNotImplemented(err) {
		t.Errorf("%v is no ErrNotImplemented", err)
	}
}

func TestWriterGoesOnWithTheNextDaemon(t *testing.T) {
	d := newDaemon(t)
	ctx := context.Background()
	blobs := d.client().Content(filepath.Join(d.dir, "content"))
	w, err := blobs.Writer(ctx, content.WithRef("half"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "first half, "); err != nil {
		t.Fatal(err)
	}
	d.stop()
	time.AfterFunc(100*time.Millisecond, d.start)
	if _, err := io.WriteString(w, "second half"); err != nil {
		t.Fatal(err)
	}
	want := digest.FromString("first half, second half")
	if err := w.Commit(ctx, 0, want); err != nil {
		t.Fatal(err)
	}
	if _, err := blobs.Info(ctx, want); err != nil {
		t.Error(err)
	}
}

func TestCallWaitsForADaemonButNotForEver(t *testing.T) {
	d := newDaemon(t)
	c := d.client()
	d.stop()
	c.patience = 50 * time.Millisecond
	if _, err := c.Config(context.Background()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "did not come back") {
		t.Errorf("%v is no ErrUnavailable", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("the client left")
	cancel(why)
	c.patience = Patience
	if _, err := c.Config(ctx); !errors.Is(err, why) {
		t.Errorf("%v, want the reason of the end", err)
	}
}
