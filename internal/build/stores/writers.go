// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
)

// writers are the open writers of blobs. Opening one reads all that was written so
// far, to compute its digest, so a writer stays open between its calls.
type writers struct {
	store content.Store

	mu     sync.Mutex
	byName map[string]*writer // by writing.Writer
}

type writer struct {
	mu sync.Mutex // held during a call; never taken with writers.mu held
	w  content.Writer
}

// with runs fn with an open writer, which it opens if need be. A writer whose fn
// fails is closed. So is one whose client has left meanwhile: an open writer keeps
// others from writing the same blob, and the client may have closed it before the
// call was carried out.
func (ws *writers) with(ctx context.Context, wr writing, fn func(content.Writer) error) error {
	w := ws.enter(wr.Writer)
	defer w.mu.Unlock()
	if w.w == nil {
		opened, err := ws.store.Writer(ctx, content.WithRef(wr.Ref), content.WithDescriptor(wr.Desc))
		if err != nil {
			ws.forget(wr.Writer, w)
			return err
		}
		w.w = opened
	}
	err := fn(w.w)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		w.w.Close()
		w.w = nil
		ws.forget(wr.Writer, w)
	}
	return err
}

// enter locks the writer with a name. It does not hold ws.mu while it waits for the
// writer, because a call that fails takes ws.mu while it has the writer.
func (ws *writers) enter(name string) *writer {
	for {
		ws.mu.Lock()
		if ws.byName == nil {
			ws.byName = map[string]*writer{}
		}
		w := ws.byName[name]
		if w == nil {
			w = &writer{}
			ws.byName[name] = w
		}
		ws.mu.Unlock()
		w.mu.Lock()
		ws.mu.Lock()
		current := ws.byName[name] == w
		ws.mu.Unlock()
		if current {
			return w
		}
		w.mu.Unlock() // it was closed meanwhile
	}
}

func (ws *writers) forget(name string, w *writer) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.byName[name] == w {
		delete(ws.byName, name)
	}
}

func stateOf(w content.Writer) (written, error) {
	st, err := w.Status()
	return written{Status: st, Digest: w.Digest()}, err
}

func (ws *writers) open(ctx context.Context, wr writing) (state written, err error) {
	err = ws.with(ctx, wr, func(w content.Writer) (err error) {
		state, err = stateOf(w)
		return err
	})
	return state, err
}

// write appends what the client sends at an offset. Bytes that the store has
// already are left out: the daemon that wrote them died before it answered.
func (ws *writers) write(ctx context.Context, wr writing, body io.Reader) (state written, err error) {
	err = ws.with(ctx, wr, func(w content.Writer) error {
		st, err := w.Status()
		if err != nil {
			return err
		}
		if st.Offset < wr.Offset {
			return errdefs.ErrDataLoss.WithMessage(fmt.Sprintf("blob %s: %d bytes are stored, the build has written %d", wr.Ref, st.Offset, wr.Offset))
		}
		if _, err := io.CopyN(io.Discard, body, st.Offset-wr.Offset); err != nil && err != io.EOF {
			return err
		}
		if _, err := io.Copy(w, body); err != nil {
			return err
		}
		state, err = stateOf(w)
		return err
	})
	return state, err
}

func (ws *writers) truncate(ctx context.Context, wr writing) (state written, err error) {
	err = ws.with(ctx, wr, func(w content.Writer) (err error) {
		if err := w.Truncate(wr.Offset); err != nil {
			return err
		}
		state, err = stateOf(w)
		return err
	})
	return state, err
}

// commit ends a writer. Bytes that are not those of the expected digest are removed: the
// next writer of this blob, from an honest registry, would continue after them and fail, too.
func (ws *writers) commit(ctx context.Context, wr writing) (state written, err error) {
	err = ws.with(ctx, wr, func(w content.Writer) error {
		err := w.Commit(ctx, wr.Size, wr.Expected, content.WithLabels(wr.Labels))
		state.Digest = w.Digest()
		return err
	})
	if errdefs.IsFailedPrecondition(err) {
		if abortErr := ws.store.Abort(context.WithoutCancel(ctx), wr.Ref); abortErr != nil && !errdefs.IsNotFound(abortErr) {
			err = fmt.Errorf("%w; what was received could not be removed: %w", err, abortErr)
		}
	}
	if err == nil {
		err = ws.close(ctx, wr)
	}
	return state, err
}

func (ws *writers) close(_ context.Context, wr writing) error {
	ws.mu.Lock()
	w := ws.byName[wr.Writer]
	delete(ws.byName, wr.Writer)
	ws.mu.Unlock()
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.w == nil {
		return nil
	}
	err := w.w.Close()
	w.w = nil
	return err
}

func (ws *writers) closeAll() {
	ws.mu.Lock()
	all := ws.byName
	ws.byName = nil
	ws.mu.Unlock()
	for _, w := range all {
		w.mu.Lock()
		if w.w != nil {
			w.w.Close()
			w.w = nil
		}
		w.mu.Unlock()
	}
}
