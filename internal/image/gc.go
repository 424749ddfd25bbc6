package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
)

// collectDelay gathers what is removed in one go into one collection.
const collectDelay = 200 * time.Millisecond

// collector runs garbage collections, one at a time.
type collector struct {
	wanted chan struct{}
	stop   context.CancelFunc
	done   chan struct{}
	mu     sync.Mutex // one collection at a time
}

func (s *Store) startCollector() {
	ctx, cancel := context.WithCancel(s.base)
	s.gc.wanted = make(chan struct{}, 1)
	s.gc.stop = cancel
	s.gc.done = make(chan struct{})
	s.holds.onSwept = func() {
		s.docs.clear()
		s.lowers.clear()
	}
	go func() {
		defer close(s.gc.done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.gc.wanted:
			}
			timer := time.NewTimer(collectDelay)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			if !s.holds.ready() {
				continue // Hold asks again
			}
			if err := s.collect(ctx); err != nil && ctx.Err() == nil {
				s.log.Error("garbage collection of images", "error", err)
			}
		}
	}()
}

func (s *Store) stopCollector() {
	s.gc.stop()
	<-s.gc.done
}

// collectSoon asks for a collection and returns at once.
func (s *Store) collectSoon() {
	select {
	case s.gc.wanted <- struct{}{}:
	default:
	}
}

// Collect removes now whatever no image, no container and no pull needs. It
// fails with errdefs.ErrFailedPrecondition before the first Hold.
func (s *Store) Collect(ctx context.Context) error {
	if !s.holds.ready() {
		return errNotHeld
	}
	return s.collect(ctx)
}

func (s *Store) collect(ctx context.Context) error {
	s.gc.mu.Lock()
	defer s.gc.mu.Unlock()
	_, err := s.db.GarbageCollect(s.ctx(ctx))
	return err
}

// withLease runs fn with a lease in its context, under which everything that
// it writes is kept until an image refers to it.
func (s *Store) withLease(ctx context.Context, fn func(context.Context) error) error {
	ctx = s.ctx(ctx)
	lease, err := s.leases.Create(ctx, leases.WithID("work-"+rand.Text()))
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	defer func() {
		if err := s.leases.Delete(context.WithoutCancel(ctx), lease); err != nil {
			s.log.Warn("a lease of the image store was left behind until the next start", "lease", lease.ID, "error", err)
		}
	}()
	err = fn(leases.WithLease(ctx, lease.ID))
	if err != nil {
		s.collectSoon() // what was written meanwhile
	}
	return err
}

// dropLeases ends the leases of a process that died: nobody else can have the
// store open.
func (s *Store) dropLeases(ctx context.Context) error {
	left, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, lease := range left {
		if err := s.leases.Delete(ctx, lease); err != nil {
			return err
		}
	}
	return nil
}
