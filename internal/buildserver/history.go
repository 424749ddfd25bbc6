// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"sync"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// forget removes a build from the history. remove is BuildKit's own removal, which only
// marks a build that anyone has ever looked at, in memory: the build would be back with
// the next process. BuildKit removes what is marked when somebody who looks at it ends to
// do so, so forget looks at it during the removal.
func (b *builder) forget(ctx context.Context, ref string, remove func() error) error {
	known, err := b.recorded(ctx, ref)
	if err != nil || !known {
		return firstError(err, remove())
	}
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	look := &looker{ctx: ctx, seen: make(chan struct{})}
	left := make(chan struct{})
	go func() {
		defer close(left)
		// It ends with an error in any case, because it is cancelled.
		_ = b.controller.ListenBuildHistory(&controlapi.BuildHistoryRequest{Ref: ref}, look)
	}()
	select {
	case <-look.seen:
	case <-left: // it was removed meanwhile
	}
	err = remove()
	leave()
	<-left
	return firstError(err, b.worker.GarbageCollect(context.WithoutCancel(ctx)))
}

// recorded reports whether a build is in the history.
func (b *builder) recorded(ctx context.Context, ref string) (bool, error) {
	look := &looker{ctx: ctx, seen: make(chan struct{}), of: ref}
	err := b.controller.ListenBuildHistory(&controlapi.BuildHistoryRequest{EarlyExit: true}, look)
	select {
	case <-look.seen:
		return true, err
	default:
		return false, err
	}
}

// looker is a client that looks at the history, within this process.
type looker struct {
	grpc.ServerStream
	ctx  context.Context
	of   string // the build that it looks for, "" for any
	seen chan struct{}
	once sync.Once
}

func (l *looker) Send(e *controlapi.BuildHistoryEvent) error {
	if l.of == "" || e.Record.GetRef() == l.of {
		l.once.Do(func() { close(l.seen) })
	}
	return nil
}

func (l *looker) Context() context.Context     { return l.ctx }
func (l *looker) SetHeader(metadata.MD) error  { return nil }
func (l *looker) SendHeader(metadata.MD) error { return nil }
