// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fullDisk is a store whose writers fail, and that counts those that are open.
type fullDisk struct {
	content.Store
	open atomic.Int32
	fail func() error
}

func (f *fullDisk) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	f.open.Add(1)
	return &failing{disk: f}, nil
}

type failing struct {
	content.Writer
	disk *fullDisk
}

func (f *failing) Write(p []byte) (int, error)     { return len(p), f.disk.fail() }
func (f *failing) Digest() digest.Digest           { return "" }
func (f *failing) Status() (content.Status, error) { return content.Status{}, nil }
func (f *failing) Close() error {
	f.disk.open.Add(-1)
	return nil
}

// A client that repeats a call while the first one fails must not stop all writers.
func TestWriterThatFailsDoesNotStopTheOthers(t *testing.T) {
	full := errors.New("no space left on device")
	inside, second := make(chan struct{}, 1), make(chan struct{}, 1)
	ws := &writers{store: &fullDisk{fail: func() error {
		select {
		case inside <- struct{}{}:
			<-second // the other call begins while this one has the writer
			for range 1000 {
				runtime.Gosched()
			}
		default: // it is the other one
		}
		return full
	}}}
	write := func() {
		if _, err := ws.write(t.Context(), writing{Ref: "blob", Writer: "one"}, strings.NewReader("x")); !errors.Is(err, full) {
			t.Errorf("%v, want that the disk is full", err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			var both sync.WaitGroup
			both.Go(write)
			both.Go(func() {
				for len(inside) == 0 {
					runtime.Gosched()
				}
				second <- struct{}{}
				write()
			})
			both.Wait()
			<-inside
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("two calls wait for each other")
	}
	if len(ws.byName) > 0 {
		t.Errorf("%d writers are left", len(ws.byName))
	}
}

func TestWriterOfAClientThatHasLeftIsClosed(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	disk := &fullDisk{fail: func() error { leave(); return nil }}
	ws := &writers{store: disk}
	wr := writing{Ref: "blob", Writer: "one"}
	if _, err := ws.write(ctx, wr, io.LimitReader(strings.NewReader("text"), 4)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that the client has left", err)
	}
	if n := disk.open.Load(); n != 0 || len(ws.byName) > 0 {
		t.Errorf("%d writers are open, %d are known", n, len(ws.byName))
	}
}

func TestWrongBytesDoNotStayInTheWayOfTheRightOnes(t *testing.T) {
	d := newDaemon(t)
	blobs := d.client().Content(filepath.Join(d.dir, "content"))
	ctx := context.Background()
	desc := ocispec.Descriptor{Digest: digest.FromString("right"), Size: 5}
	for _, wrong := range []string{"wrong", "longer than it says"} {
		w, err := blobs.Writer(ctx, content.WithRef("one"), content.WithDescriptor(desc))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(wrong)); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(ctx, desc.Size, desc.Digest); err == nil {
			t.Fatal("wrong bytes are taken")
		}
		_ = w.Close()
	}
	w, err := blobs.Writer(ctx, content.WithRef("one"), content.WithDescriptor(desc))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := w.Status(); err != nil || st.Offset != 0 {
		t.Errorf("%d wrong bytes are left, %v", st.Offset, err)
	}
	if _, err := w.Write([]byte("right")); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(ctx, desc.Size, desc.Digest); err != nil {
		t.Error(err)
	}
}
