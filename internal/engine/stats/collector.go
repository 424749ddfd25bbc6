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

// ReadFunc takes a sample of one container, ID and Name included. For a
// container that isn't running it returns an error of kind
// errdefs.ErrNotFound, with ID and Name still set.
type ReadFunc func(context.Context) (container.StatsResponse, error)

// Collector samples one container for any number of clients: once each
// Interval while there is one, and not at all while there is none.
type Collector struct {
	read ReadFunc

	// mu guards what follows. It is not held while a sample is taken.
	mu      sync.Mutex
	clients map[*client]struct{}
	stop    context.CancelFunc // of the sampling, while there are clients
	last    *result            // the latest sample, while there are clients
	closed  chan struct{}
}

// client is one stream's place for the latest sample.
type client struct {
	latest chan result // of capacity 1: who is slow misses samples, never gets old ones
}

type result struct {
	stats container.StatsResponse
	err   error
}

// NewCollector makes a collector, which costs nothing until it is asked.
func NewCollector(read ReadFunc) *Collector {
	return &Collector{read: read, clients: map[*client]struct{}{}, closed: make(chan struct{})}
}

// Close ends all streams, for a container that is removed. It may be called
// more than once.
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

// Stream calls emit for each sample, the first at once, with the sample before
// it of the same stream in PreCPUStats and PreRead. A container that isn't
// running has empty samples. Stream returns emit's error, the context's, or
// nil after Close.
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

// Once is a single sample with the one of Interval earlier in PreCPUStats: it
// takes that long. A container that isn't running has an empty sample, at once.
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

// OneShot is a single sample with nothing in PreCPUStats, at once.
func (c *Collector) OneShot(ctx context.Context) (container.StatsResponse, error) {
	return c.sample(ctx)
}

// sample reads; of a container that isn't running it keeps who it is.
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
		cl.put(*c.last) // which is no older than Interval
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

// run samples until its context ends, which is when the last client leaves.
func (c *Collector) run(ctx context.Context) {
	t := time.NewTicker(Interval)
	defer t.Stop()
	for {
		s, err := c.sample(ctx)
		c.mu.Lock()
		if ctx.Err() != nil { // under the lock: the clients may be another run's
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

// put replaces what the client hasn't taken yet.
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
