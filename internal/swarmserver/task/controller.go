// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/swarmkit/v2/agent/exec"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"

	"holdfast/internal/failpoint"
	"holdfast/internal/swarmserver/local"
	"holdfast/internal/swarmserver/mesh"
)

// controller runs one task. swarmkit calls Prepare, Start, Wait, Shutdown, Terminate
// and Remove one after the other, and stores the result of each. It ends a call by the
// context when the task is to do something else, and calls again later, also in a
// later process. So each call finds out first what has been done already.
type controller struct {
	x            *Executor
	task         *api.Task // with expanded templates
	dependencies exec.DependencyGetter
	closing      sync.Once
	closed       chan struct{}

	mu    sync.Mutex
	found *local.Container
	ports *api.PortStatus
	fetch *fetch
}

// fetch is the pull of the image, which goes on over repeated calls of Prepare.
type fetch struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed
}

// exitError is the end of a container with another code than 0.
type exitError struct {
	code  int
	cause error
}

func (e *exitError) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("task: non-zero exit (%d): %v", e.code, e.cause)
	}
	return fmt.Sprintf("task: non-zero exit (%d)", e.code)
}

// ExitCode is read by swarmkit.
func (e *exitError) ExitCode() int { return e.code }
func (e *exitError) Unwrap() error { return e.cause }

var (
	errUnhealthy = errors.New("unhealthy container")
	errRemoved   = errors.New("the container was removed")
)

// container returns the container of the task. ErrNotFound: there is none.
func (c *controller) container() (*local.Container, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.found != nil {
		return c.found, nil
	}
	found, err := c.x.host.Find(c.task.ID)
	switch {
	case err == nil:
		c.found = found
	case !errdefs.IsNotFound(err):
		err = exec.MakeTemporary(err) // it is not known whether there is one
	}
	return found, err
}

// Update is called with a changed task. Nothing in it changes a running container.
func (c *controller) Update(context.Context, *api.Task) error { return nil }

// Prepare pulls the image and creates the container.
func (c *controller) Prepare(ctx context.Context) error {
	if _, err := c.container(); err == nil {
		return exec.ErrTaskPrepared
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	if err := c.pull(ctx); err != nil {
		return err
	}
	files, err := c.makeFiles()
	if err != nil {
		return err
	}
	req, err := request(c.task, files)
	if err != nil {
		return err
	}
	if err := c.x.mesh.Join(ctx, c.task, nameOf(c.task)); err != nil {
		return err
	}
	failpoint.Here("task.pulled")
	err = c.x.engine.create(ctx, c.task.ID, nameOf(c.task), req)
	failpoint.Here("task.created")
	if errdefs.IsConflict(err) {
		if _, found := c.container(); found == nil {
			return exec.ErrTaskPrepared // an earlier attempt, whose answer got lost
		}
	}
	return err
}

// pull pulls the image, unless the task names it by its digest and this host has it. If
// the pull fails and this host has an image of that name, that image is used.
func (c *controller) pull(ctx context.Context) error {
	spec := c.task.Spec.GetContainer()
	image := imageOf(spec.Image)
	if strings.Contains(image, "@") {
		if here, err := c.x.engine.has(ctx, image); err != nil || here {
			return err
		}
	}
	auth := ""
	if o := spec.PullOptions; o != nil {
		auth = o.RegistryAuth
	}
	c.mu.Lock()
	f := c.fetch
	if f == nil {
		f = &fetch{done: make(chan struct{})}
		var background context.Context
		background, f.cancel = context.WithCancel(context.Background())
		c.fetch = f
		go func() {
			defer close(f.done)
			f.err = c.x.engine.pull(background, image, auth)
		}()
	}
	c.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-f.done:
	}
	if f.err == nil {
		return nil
	}
	log.G(ctx).Warnf("pull %s: %v", image, f.err)
	here, err := c.x.engine.has(ctx, image)
	if err != nil || here {
		return err
	}
	return f.err
}

func (c *controller) cancelPull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fetch != nil {
		c.fetch.cancel()
	}
}

// Start starts the container, and returns when it is healthy.
func (c *controller) Start(ctx context.Context) error {
	found, err := c.container()
	if errdefs.IsNotFound(err) {
		return errRemoved
	} else if err != nil {
		return err
	}
	st, err := found.State()
	if errdefs.IsNotFound(err) {
		return errRemoved
	} else if err != nil {
		return exec.MakeTemporary(err)
	}
	if !st.Started {
		if err := c.x.mesh.Join(ctx, c.task, nameOf(c.task)); err != nil {
			return err
		}
		failpoint.Here("task.starting")
		if err := c.x.engine.start(ctx, found.ID); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("starting container failed: %w", err)
		}
		failpoint.Here("task.started")
	}
	if err := c.x.mesh.Started(ctx, c.task, nameOf(c.task), inside(found)); err != nil {
		return exec.MakeTemporary(err)
	}
	// A task that an earlier process has started may be waiting for its health, too.
	s, err := c.follow(ctx, found, func(s local.State) bool { return s.Running && (s.Health == "" || s.Health == "healthy") })
	switch {
	case err != nil:
		return err
	case s.Exited:
		return ended(s, nil)
	}
	if err := c.serve(ctx, found); err != nil {
		return err
	}
	if st.Started {
		return exec.ErrTaskStarted
	}
	return nil
}

// serve adds the task to the backends of its service.
func (c *controller) serve(ctx context.Context, found *local.Container) error {
	if err := c.x.mesh.Serve(ctx, c.task, nameOf(c.task), found.ID, inside(found)); err != nil {
		return exec.MakeTemporary(err)
	}
	return nil
}

// inside is what the container has of its networks.
func inside(found *local.Container) mesh.Inside {
	netns, names := found.Network()
	return mesh.Inside{Netns: netns, Names: names}
}

// Wait returns when the container has ended.
func (c *controller) Wait(ctx context.Context) error {
	found, err := c.container()
	if errdefs.IsNotFound(err) {
		return errRemoved
	} else if err != nil {
		return err
	}
	if st, err := found.State(); err == nil && st.Running {
		// An earlier process may have started it.
		if err := c.serve(ctx, found); err != nil {
			return err
		}
	}
	s, err := c.follow(ctx, found, func(local.State) bool { return false })
	if err != nil {
		return err
	}
	c.x.mesh.Leave(c.task)
	return ended(s, nil)
}

// follow returns the first state for which enough returns true, or the container's
// last state. A container that becomes unhealthy is stopped.
func (c *controller) follow(ctx context.Context, found *local.Container, enough func(local.State) bool) (last local.State, err error) {
	err = found.Follow(ctx, func(s local.State) bool {
		last = s
		return s.Exited || s.Health == "unhealthy" || enough(s)
	})
	switch {
	case errdefs.IsNotFound(err):
		return last, errRemoved
	case err != nil:
		return last, err
	case last.Exited || last.Health != "unhealthy":
		return last, nil
	}
	c.x.mesh.Drain(ctx, c.task.ID)
	if err := c.stop(ctx, found); err != nil {
		return last, err
	}
	err = found.Follow(ctx, func(s local.State) bool { last = s; return s.Exited })
	if err != nil && !errdefs.IsNotFound(err) {
		return last, err
	}
	return last, ended(last, errUnhealthy)
}

// ended is the result of a container's end. An unhealthy one is a failure with any
// code.
func ended(s local.State, cause error) error {
	if cause == nil && s.Error != "" {
		cause = errors.New(s.Error)
	}
	if s.ExitCode == 0 && !errors.Is(cause, errUnhealthy) {
		return nil
	}
	return &exitError{s.ExitCode, cause}
}

// stop stops the container by the daemon, and by the shim while no daemon lives.
func (c *controller) stop(ctx context.Context, found *local.Container) error {
	return c.end(ctx, found, c.x.engine.stop, found.Stop)
}

func (c *controller) end(ctx context.Context, found *local.Container, byDaemon func(context.Context, string) error, byShim func(context.Context) error) error {
	for {
		st, err := found.State()
		if errdefs.IsNotFound(err) || err == nil && (st.Exited || !st.Started) {
			return nil
		}
		err = byDaemon(ctx, found.ID)
		switch {
		case err == nil, errdefs.IsNotFound(err):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errdefs.IsNotModified(err), errdefs.IsConflict(err): // look again
		case !away(err):
			return err
		case byShim(ctx) == nil:
			return nil
		}
		// Otherwise neither a daemon nor a shim answers: the container is as it was.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Shutdown stops the container, with its signal and its grace period.
func (c *controller) Shutdown(ctx context.Context) error {
	found, err := c.drained(ctx)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	failpoint.Here("task.stopping")
	if err := c.stop(ctx, found); err != nil {
		return err
	}
	c.x.mesh.Leave(c.task)
	return nil
}

// drained ends a pull, and returns the container once it gets no new connections. The
// error is ErrNotFound if there is no container.
func (c *controller) drained(ctx context.Context) (*local.Container, error) {
	if err := c.x.touch(); err != nil {
		return nil, err
	}
	c.cancelPull()
	found, err := c.container()
	if err == nil {
		c.x.mesh.Drain(ctx, c.task.ID)
	}
	return found, err
}

// Terminate kills the container.
func (c *controller) Terminate(ctx context.Context) error {
	found, err := c.drained(ctx)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	return c.end(ctx, found, c.x.engine.kill, found.Kill)
}

// Remove stops and removes the container.
func (c *controller) Remove(ctx context.Context) error {
	if err := c.x.touch(); err != nil {
		return err
	}
	if err := c.Shutdown(ctx); err != nil {
		log.G(ctx).Warnf("stop the container of task %s before its removal: %v", c.task.ID, err)
	}
	found, err := c.container()
	if err == nil {
		failpoint.Here("task.removing")
		err = c.x.engine.remove(ctx, found.ID)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	c.x.mesh.Leave(c.task)
	c.x.removeFiles(c.task.ID)
	return nil
}

// Close ends the controller. The container runs on.
func (c *controller) Close() error {
	c.closing.Do(func() {
		c.cancelPull()
		close(c.closed)
		c.x.left(c.task.ID)
	})
	return nil
}

// ContainerStatus is read by swarmkit after each call.
func (c *controller) ContainerStatus(context.Context) (*api.ContainerStatus, error) {
	found, err := c.container()
	if err != nil {
		return nil, nil //nolint:nilnil // swarmkit keeps what it knew
	}
	st, err := found.State()
	if err != nil {
		return nil, nil //nolint:nilnil // as above
	}
	return &api.ContainerStatus{ContainerID: found.ID, PID: int32(st.Pid), ExitCode: int32(st.ExitCode)}, nil
}

// portsTimeout bounds how long the report of a task waits for the daemon.
const portsTimeout = 2 * time.Second

// PortStatus is read by swarmkit after each call. While no daemon lives the ports are
// those that it reported last.
func (c *controller) PortStatus(ctx context.Context) (*api.PortStatus, error) {
	c.mu.Lock()
	found := c.found
	known := c.ports
	c.mu.Unlock()
	if known == nil {
		known = c.task.Status.PortStatus
	}
	if _, bound := ports(c.task); found == nil || len(bound) == 0 {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, portsTimeout)
	defer cancel()
	shown, err := c.x.engine.inspect(ctx, found.ID)
	if err != nil {
		return known, nil
	}
	now := published(shown)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ports = now
	return now, nil
}
