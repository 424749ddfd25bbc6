// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/engine/stats"
	"holdfast/internal/errs"
)

// statsHub has one collector per container, so that many clients of a container share
// one reader.
type statsHub struct {
	host oci.Host

	mu         sync.Mutex
	collectors map[string]*stats.Collector
}

// of returns a container's collector.
func (h *statsHub) of(a *actor) *stats.Collector {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.collectors[a.id]; c != nil {
		return c
	}
	if h.collectors == nil {
		h.collectors = map[string]*stats.Collector{}
	}
	c := stats.NewCollector(func(ctx context.Context) (moby.StatsResponse, error) { return sample(ctx, h.host, a) })
	h.collectors[a.id] = c
	return c
}

// forget ends the streams of a container that is removed.
func (h *statsHub) forget(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.collectors[id]; c != nil {
		c.Close()
		delete(h.collectors, id)
	}
}

// cgroupOf returns the folders of a container's control group.
func cgroupOf(h oci.Host, v *view) stats.Cgroup {
	path := oci.CgroupPath(v.spec.CgroupDriver, v.spec.CgroupParent, v.spec.ID)
	return h.CgroupDirs(v.spec.CgroupDriver, path)
}

// sample reads the container's present resource usage.
func sample(ctx context.Context, h oci.Host, a *actor) (moby.StatsResponse, error) {
	v := a.view.Load()
	r := moby.StatsResponse{ID: a.id, Name: "/" + v.spec.Name}
	if v.rec.Pid == 0 || !v.state.Alive() {
		return r, errs.NotFound("container %s is not running", a.id)
	}
	src := stats.Source{Cgroup: cgroupOf(h, v), MemTotal: h.MemTotal}
	if !v.req.HostConfig.NetworkMode.IsHost() {
		src.NetPid = v.rec.Pid
	}
	s, err := stats.Read(ctx, src)
	s.ID, s.Name = r.ID, r.Name
	return s, err
}

// ContainerStats emits samples of a container's resource usage: one sample if stream
// is false, otherwise one each second until the context ends or the container is
// removed.
func (e *Engine) ContainerStats(ctx context.Context, ref string, stream, oneShot bool, emit func(moby.StatsResponse) error) error {
	a, err := e.index.find(ref)
	if err != nil {
		return err
	}
	c := e.stats.of(a)
	if stream {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-e.closing:
				cancel()
			case <-ctx.Done():
			}
		}()
		err := c.Stream(ctx, emit)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	sample := c.Once
	if oneShot {
		sample = c.OneShot
	}
	s, err := sample(ctx)
	if err != nil {
		return err
	}
	return emit(s)
}

// ContainerTop lists a container's processes as ps shows them.
func (e *Engine) ContainerTop(ctx context.Context, ref, psArgs string) (moby.TopResponse, error) {
	a, err := e.index.find(ref)
	if err != nil {
		return moby.TopResponse{}, err
	}
	v := a.view.Load()
	switch v.state {
	case container.Running, container.Paused, container.Ending:
	case container.Restarting:
		return moby.TopResponse{}, errs.Conflict("container %s is restarting, wait until the container is running", a.id)
	default:
		return moby.TopResponse{}, errs.Conflict("container %s is not running", a.id)
	}
	pids, err := stats.Pids(cgroupOf(e.host, v))
	switch {
	case isNotFound(err): // it has just ended: not found would be the container
		return moby.TopResponse{}, errs.Conflict("container %s is not running", a.id)
	case err != nil:
		return moby.TopResponse{}, fmt.Errorf("processes of %s: %w", v.spec.Name, err)
	}
	top, err := stats.Top(ctx, pids, psArgs)
	if err == nil {
		a.emit("top", nil)
	}
	return top, err
}
