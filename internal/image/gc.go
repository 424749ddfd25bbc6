// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"sync"
	"time"
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
			if !co.pins.ready() {
				continue // PinSnapshots wakes the collector again
			}
			if wanted, err := co.collectWanted(ctx); err != nil {
				co.log.Error("garbage collection of images", "error", err)
			} else if !wanted {
				continue
			}
			if err := co.collect(ctx); err != nil && ctx.Err() == nil {
				co.log.Error("garbage collection of images", "error", err)
			}
		}
	}()
}

func (co *collector) stopCollector() {
	co.stop()
	<-co.done
}

// collectWanted takes the requests and reports whether they need a collection.
func (co *collector) collectWanted(ctx context.Context) (bool, error) {
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
	return co.collect(ctx)
}

func (co *collector) collect(ctx context.Context) error {
	co.mu.Lock()
	defer co.mu.Unlock()
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
