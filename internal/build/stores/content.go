// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxChunk bounds, in bytes, what one request writes.
const maxChunk = 4 << 20

// Content is the daemon's store of blobs. dir is its directory, from which blobs are
// read.
func (c *Client) Content(dir string) content.Store { return &blobs{c, dir} }

type blobs struct {
	*Client
	dir string
}

func (b *blobs) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	if b.reads != nil {
		if err := b.refresh(ctx, d); err != nil {
			return content.Info{}, err
		}
	}
	info, _, err := ask(ctx, b.Client, contentInfo, d)
	return info, err
}

// refresh has the daemon asked for all that is remembered of blobs, if the database has
// changed since then.
func (b *blobs) refresh(ctx context.Context, d digest.Digest) error {
	state, ok := b.reads.now()
	ns := b.namespaceOf(ctx)
	if !ok || b.reads.has(state, question(contentInfo, ns, d)) {
		return nil
	}
	all := b.reads.together(asked{ns, d})
	if len(all) < 2 {
		return nil
	}
	infos, _, err := ask(ctx, b.Client, contentInfos, all)
	if errdefs.IsNotImplemented(err) {
		return nil // a daemon of an earlier release
	}
	if err != nil {
		return err
	}
	gone := slices.DeleteFunc(all, func(d digest.Digest) bool {
		return slices.ContainsFunc(infos, func(i content.Info) bool { return i.Digest == d })
	})
	b.reads.forget(ns, gone)
	for _, info := range infos {
		text, err := json.Marshal(info)
		if err != nil {
			return err
		}
		b.reads.note(state, question(contentInfo, ns, info.Digest), text)
	}
	return nil
}

func (b *blobs) Update(ctx context.Context, info content.Info, fields ...string) (content.Info, error) {
	if old, err := b.Info(ctx, info.Digest); err == nil && !changes(old, info, fields) {
		return old, nil
	}
	info, _, err := ask(ctx, b.Client, contentUpdate, updated[content.Info]{info, fields})
	return info, err
}

func (b *blobs) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	all, _, err := ask(ctx, b.Client, contentWalk, filters)
	if err != nil {
		return err
	}
	for _, info := range all {
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// Delete is refused: blobs are deleted by the daemon's garbage collection.
func (b *blobs) Delete(context.Context, digest.Digest) error {
	return errdefs.ErrNotImplemented.WithMessage("blobs are deleted by the daemon's garbage collection")
}

func (b *blobs) Status(ctx context.Context, ref string) (content.Status, error) {
	st, _, err := ask(ctx, b.Client, contentStatus, ref)
	return st, err
}

func (b *blobs) ListStatuses(ctx context.Context, filters ...string) ([]content.Status, error) {
	all, _, err := ask(ctx, b.Client, contentStatuses, filters)
	return all, err
}

func (b *blobs) Abort(ctx context.Context, ref string) error {
	_, again, err := ask(ctx, b.Client, contentAbort, ref)
	if again && errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// ReaderAt reads a blob from its file, which stays readable when the blob is
// deleted.
func (b *blobs) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("blob %q: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	if _, err := b.Info(ctx, desc.Digest); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(b.dir, "blobs", desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &blobFile{f, st.Size()}, nil
}

type blobFile struct {
	*os.File
	size int64
}

func (f *blobFile) Size() int64 { return f.size }

// Writer opens a writer. It goes on at its offset if the daemon dies meanwhile.
func (b *blobs) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if exists, err := b.keep(ctx, o.Desc.Digest); err != nil {
		return nil, err
	} else if exists {
		return nil, fmt.Errorf("content %v: %w", o.Desc.Digest, errdefs.ErrAlreadyExists)
	}
	w := &blobWriter{client: b.Client, ctx: context.WithoutCancel(ctx), at: writing{Ref: o.Ref, Writer: rand.Text(), Desc: o.Desc}}
	state, _, err := ask(ctx, b.Client, contentOpen, w.at)
	if err != nil {
		return nil, err
	}
	w.note(state)
	return w, nil
}

// keep adds a blob to a lease that has to be made for it, and reports whether the blob
// exists. A blob whose lease exists is not looked up.
func (b *blobs) keep(ctx context.Context, d digest.Digest) (exists bool, _ error) {
	lease, ok := leases.FromContext(ctx)
	if !ok || d == "" {
		return false, nil
	}
	if _, ok := b.unmade.get(leaseKey{b.namespaceOf(ctx), lease}); !ok {
		return false, nil
	}
	_, err := b.Info(ctx, d)
	if err == nil {
		if err = (remoteLeases{b.Client}).AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{ID: d.String(), Type: "content"}); err != nil {
			return false, err
		}
		_, err = b.Info(ctx, d) // it may have been collected meanwhile
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return false, err
	}
	return err == nil, nil
}

// blobWriter is one writer. As any content.Writer it is used by one goroutine at a
// time.
type blobWriter struct {
	client *Client
	ctx    context.Context // has the namespace and the lease
	at     writing
	state  written
	ended  bool
}

func (w *blobWriter) note(state written) {
	w.state, w.at.Offset = state, state.Status.Offset
}

func (w *blobWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		chunk := p[:min(len(p), maxChunk)]
		q := url.Values{
			"ref": {w.at.Ref}, "writer": {w.at.Writer}, "offset": {strconv.FormatInt(w.at.Offset, 10)},
			"size": {strconv.FormatInt(w.at.Desc.Size, 10)}, "digest": {w.at.Desc.Digest.String()},
		}
		var state written
		if _, err := w.client.send(w.ctx, writeCall+"?"+q.Encode(), chunk, &state); err != nil {
			return n, err
		}
		w.note(state)
		n += len(chunk)
		p = p[len(chunk):]
	}
	return n, nil
}

func (w *blobWriter) Digest() digest.Digest { return w.state.Digest }

func (w *blobWriter) Status() (content.Status, error) { return w.state.Status, nil }

func (w *blobWriter) Truncate(size int64) error {
	w.at.Offset = size
	state, _, err := ask(w.ctx, w.client, contentTruncate, w.at)
	if err == nil {
		w.note(state)
	}
	return err
}

// Commit ends the writer. A repeated commit finds that the blob exists.
func (w *blobWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	var info content.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return err
		}
	}
	at := w.at
	at.Size, at.Expected, at.Labels = size, expected, info.Labels
	state, again, err := ask(ctx, w.client, contentCommit, at)
	w.ended = err == nil
	if again && errdefs.IsAlreadyExists(err) {
		w.ended = true
		return nil
	}
	if err == nil {
		w.state.Digest = state.Digest
	}
	return err
}

// closeTimeout bounds the call that closes a writer. Without a daemon there is none
// to close.
const closeTimeout = 5 * time.Second

func (w *blobWriter) Close() error {
	if w.ended {
		return nil
	}
	w.ended = true
	ctx, cancel := context.WithTimeout(w.ctx, closeTimeout)
	defer cancel()
	_, _, err := ask(ctx, w.client, contentClose, w.at)
	return err
}
