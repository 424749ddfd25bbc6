package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// collectDelay gathers what is removed in one go into one collection.
const collectDelay = 200 * time.Millisecond

// collector runs garbage collections, one at a time.
type collector struct {
	wanted chan struct{}
	stop   context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex // one collection at a time
	cleaned bool       // of what a process that died has left

	listMu sync.Mutex
	must   bool     // something was removed
	chains []string // released by containers: removed only if no image has them
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
			if wanted, err := s.collectWanted(ctx); err != nil {
				s.log.Error("garbage collection of images", "error", err)
			} else if !wanted {
				continue
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
	s.gc.listMu.Lock()
	s.gc.must = true
	s.gc.listMu.Unlock()
	s.wakeCollector()
}

// released tells that a container no longer stands on these chains. Removing a
// container costs no collection as long as its image is there.
func (s *Store) released(chains []string) {
	s.gc.listMu.Lock()
	s.gc.chains = append(s.gc.chains, chains...)
	s.gc.listMu.Unlock()
	s.wakeCollector()
}

// collectWanted takes what was asked for and says whether it needs a
// collection.
func (s *Store) collectWanted(ctx context.Context) (bool, error) {
	s.gc.listMu.Lock()
	must, chains := s.gc.must, s.gc.chains
	s.gc.must, s.gc.chains = false, nil
	s.gc.listMu.Unlock()
	if must {
		return true, nil
	}
	ctx = s.ctx(ctx)
	all, err := s.entries(ctx)
	if err != nil {
		return true, err
	}
	named := map[string]bool{}
	for _, e := range all {
		variants, err := s.variants(ctx, e.target)
		if err != nil {
			return true, err
		}
		for _, v := range variants {
			named[v.snapshot()] = true
		}
	}
	for _, chain := range chains {
		if !named[chain] {
			return true, nil
		}
	}
	return false, nil
}

func (s *Store) wakeCollector() {
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
	ctx = s.ctx(ctx)
	if !s.gc.cleaned {
		s.gc.cleaned = s.cleanDrivers(ctx)
	}
	_, err := s.db.GarbageCollect(ctx)
	return err
}

// cleanDrivers removes directories that a process left which died unpacking. A
// driver that has no layer yet can't tell; then it is false.
func (s *Store) cleanDrivers(ctx context.Context) bool {
	done := true
	for name, sn := range s.drivers {
		c, ok := sn.(snapshots.Cleaner)
		if !ok {
			continue
		}
		err := c.Cleanup(ctx)
		done = done && err == nil
		if err != nil && !errdefs.IsNotFound(err) {
			s.log.Warn("directories of half unpacked layers are left", "driver", name, "error", err)
		}
	}
	return done
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
