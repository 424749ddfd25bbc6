// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"sync"
	"sync/atomic"

	"holdfast/internal/errs"
)

// progress is how far an engine has come: whether its restore is done, whether a
// successor has taken over, and whether it ends. Everything in the engine that has to
// wait for the restore or must stop with the daemon shares it.
type progress struct {
	// observes: the engine belongs to an Observer or is retired, and changes
	// nothing by itself. Once set it stays set.
	observes atomic.Bool
	// retired: the engine only observes, because a successor took over.
	retired atomic.Bool
	// handedOver: see Deps.
	handedOver bool
	// restored is closed when every container was observed. Requests that change
	// something wait for it, requests that read do not.
	restored chan struct{}
	// closing is closed when the daemon ends.
	closing   chan struct{}
	closeOnce sync.Once
}

func newProgress(handedOver bool) *progress {
	return &progress{handedOver: handedOver, restored: make(chan struct{}), closing: make(chan struct{})}
}

// close closes closing. It is idempotent.
func (p *progress) close() { p.closeOnce.Do(func() { close(p.closing) }) }

// isRestored reports whether the restore is done.
func (p *progress) isRestored() bool {
	select {
	case <-p.restored:
		return true
	default:
		return false
	}
}

// ready waits until the restore is done.
func (p *progress) ready(ctx context.Context) error {
	select {
	case <-p.restored:
		return nil
	default:
	}
	select {
	case <-p.restored:
		return nil
	case <-p.closing:
		return errs.Unavailable("the daemon is shutting down")
	case <-ctx.Done():
		return ctx.Err()
	}
}
