// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
)

// The library opens a writer of a blob before it commits the transaction that records
// the writer. If the commit fails, as it does on a full disk, the library returns no
// writer, and does not close the one that it has. That one keeps others from writing the
// same blob, so that a later pull or build would wait for it until the daemon ends. The
// two types here close it: the store below the database notes which writer it has
// opened, and the one above closes that writer if the call fails.

type openedKey struct{}

// blobStore is a store below the database. The database looks for WalkStatusRefs: without
// it a writer that a full disk has let begin only half would stop every collection.
type blobStore interface {
	content.Store
	WalkStatusRefs(ctx context.Context, fn func(ref string) error) error
}

// noting is the store below the database.
type noting struct{ blobStore }

func (n noting) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := n.blobStore.Writer(ctx, opts...)
	if at, ok := ctx.Value(openedKey{}).(*content.Writer); ok && err == nil {
		*at = w
	}
	return w, err
}

// closing is the store above the database.
type closing struct{ content.Store }

func (c closing) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	opened := new(content.Writer)
	w, err := c.Store.Writer(context.WithValue(ctx, openedKey{}, opened), opts...)
	if err != nil && *opened != nil {
		(*opened).Close()
	}
	return w, err
}
