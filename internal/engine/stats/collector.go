// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// Interval is the time between two samples of a stream.
const Interval = time.Second

// ReadFunc takes a sample of one container, with ID and Name. For a container
// that isn't running it returns errdefs.ErrNotFound, with ID and Name set.
type ReadFunc func(context.Context) (container.StatsResponse, error)

// Collector samples one container for any number of clients: once each Interval
// while it has clients, and otherwise not at all.
type Collector struct {
	read ReadFunc

	// mu guards the following fields. It is not held while a sample is taken.
	mu      sync.Mutex
	clients map[*client]struct{}
	stop    context.CancelFunc // ends the sampling, while there are clients
	last    *result            // the latest sample, while there are clients
	closed  chan struct{}
}

// client holds the latest sample for one stream.
type client struct {
	latest chan result // capacity 1: a slow client misses samples and never gets old ones
}

type result struct {
	stats container.StatsResponse
	err   error
}

// NewCollector returns a collector, which takes no samples before it has clients.
func NewCollector(read ReadFunc) *Collector {
	return &Collector{read: read, clients: map[*client]struct{}{}, closed: make(chan struct{})}
}

// Close ends all streams, when the container is removed. It is idempotent.
func (c *Collector) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	if c.stop != nil {
		c.stop()
		c.stop = nil
	}
}

// Stream calls emit for each sample, the first at once. PreCPUStats and PreRead
// have the previous sample of the same stream. A container that isn't running has
// empty samples. Stream returns emit's error, the context's error, or nil after
// Close.
func (c *Collector) Stream(ctx context.Context, emit func(container.StatsResponse) error) error {
	cl := c.join()
	defer c.leave(cl)
	var before *container.StatsResponse
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.closed:
			return nil
		case r := <-cl.latest:
			if r.err != nil {
				return r.err
			}
			s := withPrevious(r.stats, before)
			before = &r.stats
			if err := emit(s); err != nil {
				return err
			}
		}
	}
}

// Once returns a single sample with the one of Interval earlier in PreCPUStats,
// so it takes that long. For a container that isn't running it returns an empty
// sample at once.
func (c *Collector) Once(ctx context.Context) (container.StatsResponse, error) {
	first, err := c.sample(ctx)
	if err != nil || first.Read.IsZero() {
		return first, err
	}
	t := time.NewTimer(Interval)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return container.StatsResponse{}, ctx.Err()
	case <-c.closed:
		return first, nil
	case <-t.C:
	}
	second, err := c.sample(ctx)
	return withPrevious(second, &first), err
}

// OneShot returns a single sample at once, with empty PreCPUStats.
func (c *Collector) OneShot(ctx context.Context) (container.StatsResponse, error) {
	return c.sample(ctx)
}

// sample calls read. For a container that isn't running it returns a sample with
// only ID and Name.
func (c *Collector) sample(ctx context.Context) (container.StatsResponse, error) {
	s, err := c.read(ctx)
	if err != nil && errdefs.IsNotFound(err) {
		return container.StatsResponse{ID: s.ID, Name: s.Name, OSType: "linux"}, nil
	}
	return s, err
}

func withPrevious(s container.StatsResponse, before *container.StatsResponse) container.StatsResponse {
	if before != nil && !s.Read.IsZero() {
		s.PreCPUStats, s.PreRead = before.CPUStats, before.Read
	}
	return s
}

func (c *Collector) join() *client {
	cl := &client{latest: make(chan result, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients[cl] = struct{}{}
	if c.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		c.stop = cancel
		go c.run(ctx)
	} else if c.last != nil {
		cl.put(*c.last) // it is no older than Interval
	}
	return cl
}

func (c *Collector) leave(cl *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.clients, cl)
	if len(c.clients) == 0 && c.stop != nil {
		c.stop()
		c.stop, c.last = nil, nil
	}
}

// run takes samples until its context ends, which happens when the last client
// leaves.
func (c *Collector) run(ctx context.Context) {
	t := time.NewTicker(Interval)
	defer t.Stop()
	for {
		s, err := c.sample(ctx)
		c.mu.Lock()
		if ctx.Err() != nil { // checked under the lock: the clients may belong to a later run
			c.mu.Unlock()
			return
		}
		c.last = &result{s, err}
		for cl := range c.clients {
			cl.put(*c.last)
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// put replaces a sample that the client has not received yet.
func (cl *client) put(r result) {
	for {
		select {
		case cl.latest <- r:
			return
		default:
		}
		select {
		case <-cl.latest:
		default:
		}
	}
}
