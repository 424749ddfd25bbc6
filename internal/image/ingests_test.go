// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestWriterThatCouldNotBeRecordedKeepsNobodyWaiting(t *testing.T) {
	s, err := Open(context.Background(), Options{Root: t.TempDir(), Snapshotter: Native})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := s.ctx(context.Background())
	// A database that can't grow is one on a full disk. The name is long, so that it
	// fits on no page that is free.
	ref := content.WithRef(strings.Repeat("x", 30_000))
	s.bolt.MaxSize = 1
	if _, err := s.contents.content.Writer(ctx, ref); err == nil {
		t.Fatal("the database has grown")
	}
	s.bolt.MaxSize = 0
	w, err := s.contents.content.Writer(ctx, ref)
	if err != nil {
		t.Fatalf("the blob can't be written any more: %.200v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// A full disk lets a writer begin only half. The blobs of others are collected all the same.
func TestWriterThatBeganOnlyHalfStopsNoCollection(t *testing.T) {
	s, err := Open(context.Background(), Options{Root: t.TempDir(), Snapshotter: Native})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := s.ctx(context.Background())
	if err := s.PinSnapshots(ctx, nil); err != nil {
		t.Fatal(err)
	}
	lease, err := s.leasing.leases.Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	// Without any blob the directory of blobs does not exist, and nothing is collected.
	text := []byte("text")
	whole := ocispec.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))}
	if err := content.WriteBlob(leases.WithLease(ctx, lease.ID), s.contents.content, "whole", bytes.NewReader(text), whole); err != nil {
		t.Fatal(err)
	}
	w, err := s.contents.content.Writer(leases.WithLease(ctx, lease.ID), content.WithRef("begun"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	half := s.path("content", "ingest", strings.Repeat("ab", 32))
	if err := os.Mkdir(half, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.leasing.leases.Delete(ctx, lease); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	for range 1000 { // blobs are removed after the collection
		left, err := os.ReadDir(s.path("content", "ingest"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 1 {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Error("what nobody needs is left")
}
