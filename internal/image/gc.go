// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"sync"
	"time"

	"github.com/moby/moby/api/types/image"
)

// collectDelay is the wait before a collection, so that removals in quick
// succession share one.
const collectDelay = 200 * time.Millisecond

// requests are the requests for a garbage collection.
type requests struct {
	// wanted wakes the collector. Its capacity is 1.
	wanted chan struct{}

	mu     sync.Mutex
	must   bool     // something was removed
	chains []string // released by containers: collect only if no image has them
}

// collectSoon requests a collection and returns at once.
func (rq *requests) collectSoon() {
	rq.mu.Lock()
	rq.must = true
	rq.mu.Unlock()
	rq.wakeCollector()
}

// released reports that a container no longer uses these chains. Removing a
// container causes no collection as long as its image is in the store.
func (rq *requests) released(chains []string) {
	rq.mu.Lock()
	rq.chains = append(rq.chains, chains...)
	rq.mu.Unlock()
	rq.wakeCollector()
}

// take returns the requests since the last call.
func (rq *requests) take() (must bool, chains []string) {
	rq.mu.Lock()
	defer rq.mu.Unlock()
	must, chains = rq.must, rq.chains
	rq.must, rq.chains = false, nil
	return must, chains
}

// repeat has the next collection remove what a failed one did not. It does not wake the
// collector, which would fail again.
func (rq *requests) repeat() {
	rq.mu.Lock()
	rq.must = true
	rq.mu.Unlock()
}

func (rq *requests) wakeCollector() {
	select {
	case rq.wanted <- struct{}{}:
	default:
	}
}

// collector runs garbage collections, one at a time.
type collector struct {
	env
	requests  *requests
	pins      *pins
	contents  *contents
	layers    *layers
	catalog   *catalog
	describer *describer

	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex // held during a collection
	cleaned bool       // directories left by a dead process have been removed
}

func (co *collector) startCollector() {
	ctx, cancel := context.WithCancel(co.base)
	co.stop = cancel
	co.done = make(chan struct{})
	co.pins.onSwept = func() {
		co.contents.docs.clear()
		co.layers.lowers.clear()
	}
	co.pins.real = func(storage, chain string) string {
		key, _ := co.layers.adoptions.get(storage, chain)
		return key
	}
	go func() {
		defer close(co.done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-co.requests.wanted:
			}
			timer := time.NewTimer(collectDelay)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			co.collectWanted(ctx)
		}
	}()
}

func (co *collector) stopCollector() {
	co.stop()
	<-co.done
}

// collectWanted makes the collection that is requested, if one is, and waits for one
// that is under way. What is counted after it does not include what was removed
// before it. PinSnapshots wakes the collector again if it is too early.
func (co *collector) collectWanted(ctx context.Context) {
	co.mu.Lock()
	defer co.mu.Unlock()
	if !co.pins.ready() {
		return
	}
	wanted, err := co.wanted(ctx)
	if err != nil {
		co.log.Error("garbage collection of images", "error", err)
	}
	if !wanted {
		return
	}
	if err := co.collect(ctx); err != nil {
		co.requests.repeat()
		if ctx.Err() == nil {
			co.log.Error("garbage collection of images", "error", err)
		}
	}
}

// wanted takes the requests and reports whether they need a collection.
func (co *collector) wanted(ctx context.Context) (bool, error) {
	must, chains := co.requests.take()
	if must {
		return true, nil
	}
	ctx = co.ctx(ctx)
	all, err := co.catalog.entries(ctx)
	if err != nil {
		return true, err
	}
	named := map[string]bool{}
	for _, e := range all {
		variants, err := co.contents.variants(ctx, e.target)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err != nil {
			co.describer.logDamaged(e, err) // its layers are unknown, so it holds none
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

// Collect removes now all data that no image, no container and no pull needs.
// It fails with errdefs.ErrFailedPrecondition before the first PinSnapshots.
func (co *collector) Collect(ctx context.Context) error {
	if !co.pins.ready() {
		return errNotPinned
	}
	co.mu.Lock()
	defer co.mu.Unlock()
	return co.collect(ctx)
}

// collect needs mu.
func (co *collector) collect(ctx context.Context) error {
	ctx = co.ctx(ctx)
	if !co.cleaned {
		co.cleaned = co.layers.cleanDrivers(ctx)
	}
	// The collection itself can't read them, because it holds the database.
	if err := co.layers.loadAdoptions(ctx); err != nil {
		return err
	}
	_, err := co.contents.db.GarbageCollect(ctx)
	return err
}

// DiskUsage returns the space that images use and the space that a prune could
// free, in bytes. containers counts an image's containers. What a removal has given
// up is not counted.
func (s *Store) DiskUsage(ctx context.Context, containers func(imageID string) int64) (image.DiskUsage, error) {
	s.collectWanted(context.WithoutCancel(ctx)) // a client that leaves must not break it off
	items, err := s.List(ctx, ListOptions{SharedSize: true, Containers: containers})
	if err != nil {
		return image.DiskUsage{}, err
	}
	total, err := s.layers.diskUsage(s.ctx(ctx))
	if err != nil {
		return image.DiskUsage{}, err
	}
	du := image.DiskUsage{Items: items, TotalCount: int64(len(items)), TotalSize: total}
	for _, i := range items {
		if i.Containers > 0 {
			du.ActiveCount++
		} else {
			du.Reclaimable += i.Size - max(i.SharedSize, 0)
		}
	}
	return du, nil
}
