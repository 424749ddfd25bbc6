// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/swarmkit/v2/agent"
	"github.com/moby/swarmkit/v2/agent/exec"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"

	"holdfast/internal/errs"
	"holdfast/internal/swarm"
	"holdfast/internal/swarmserver/mesh"
)

// attachment is the controller of a task that is a container's place on a network: the
// container was not made by the swarm, which gives it an address alone. The task lasts
// for as long as the container is to be on the network, whether it runs or not. The
// daemon's record of the container decides that, so nothing is left of a daemon that died
// between the request for the place and its record.
type attachment struct {
	x         *Executor
	task      *api.Task
	container string
	ready     chan struct{} // closed when the daemon knows the network, or it failed
	readying  sync.Once
	err       error // set before ready is closed

	// telling is held while other nodes are told of the container, which they are not
	// any more when the place is over.
	telling sync.Mutex
	over    bool

	// Whether, and when last, the container was on the network. swarmkit calls Wait
	// again after each change, one call at a time.
	seen bool
	last time.Time
}

const (
	// unseen is for how long a place is kept whose container was never on the network:
	// it may be about to be created.
	unseen = 5 * time.Minute
	// lookEach is the time between two looks at the container. After a change it is
	// lookSoon for some looks, because changes come together.
	lookEach = time.Second
	lookSoon = 50 * time.Millisecond
	looks    = 40
	// attachTimeout bounds how long a container waits for its place.
	attachTimeout = 20 * time.Second
)

func (x *Executor) attachmentOf(t *api.Task) *attachment {
	a := &attachment{x: x, task: t, container: t.Spec.GetAttachment().ContainerID, ready: make(chan struct{}), last: time.Now()}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.attachments[t.ID] = a
	return a
}

func (a *attachment) isReady(err error) {
	a.readying.Do(func() {
		a.err = err
		close(a.ready)
	})
}

// place is the place on the network, which has an address before the task comes here.
func (a *attachment) place() (p swarm.Attachment, err error) {
	list := mesh.Overlays(a.task)
	if len(list) != 1 {
		return p, errs.Unavailable("the swarm has given no address on the network")
	}
	prefix, err := netip.ParsePrefix(list[0].Addresses[0])
	if err != nil {
		return p, err
	}
	spec := list[0].Network.Spec
	return swarm.Attachment{Network: spec.Annotations.Name, Address: prefix.Addr(), Internal: spec.Internal}, nil
}

// on reports whether this is the place of a container on a network.
func (a *attachment) on(container, network string) bool {
	list := mesh.Overlays(a.task)
	return a.container == container && len(list) == 1 && (list[0].Network.ID == network || list[0].Network.Spec.Annotations.Name == network)
}

// Attach gives a container a place on a network. It is idempotent. Errors: those of the
// managers, ErrUnavailable.
func (x *Executor) Attach(ctx context.Context, r swarm.AttachRequest) (swarm.Attachment, error) {
	none := swarm.Attachment{}
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	late := func() error {
		if r.Address.IsValid() {
			return errs.Unavailable("no manager of the swarm has given the container the address %s on network %s in %s: it may be in use", r.Address, r.Network, attachTimeout)
		}
		return errs.Unavailable("no manager of the swarm has given the container an address on network %s in %s: see whether the managers have a quorum (docker node ls on a manager)", r.Network, attachTimeout)
	}
	a := x.findAttachment(func(a *attachment) bool { return a.on(r.Container, r.Network) })
	if a == nil {
		allocator := x.allocator()
		if allocator == nil {
			return none, errs.Unavailable("this node is not ready to connect containers to networks of the swarm: ask again")
		}
		var addresses []string
		if r.Address.IsValid() {
			addresses = []string{r.Address.String()}
		}
		id, err := allocator.AttachNetwork(ctx, r.Container, r.Network, addresses)
		if ctx.Err() != nil {
			return none, late()
		} else if err != nil {
			return none, err
		}
		// The task comes when it has an address.
		for a == nil {
			select {
			case <-ctx.Done():
				go x.detach(context.WithoutCancel(ctx), id)
				return none, late()
			case <-time.After(lookSoon):
			}
			a = x.findAttachment(func(a *attachment) bool { return a.task.ID == id })
		}
	}
	select {
	case <-ctx.Done():
		return none, late()
	case <-a.ready:
	}
	if a.err != nil {
		go x.detach(context.WithoutCancel(ctx), a.task.ID)
		return none, a.err
	}
	return a.place()
}

func (x *Executor) findAttachment(is func(*attachment) bool) *attachment {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, a := range x.attachments {
		if is(a) {
			return a
		}
	}
	return nil
}

// detach gives a place back. If no manager answers, it is tried again with the next look
// at the container.
func (x *Executor) detach(ctx context.Context, task string) {
	allocator := x.allocator()
	if allocator == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	if err := allocator.DetachNetwork(ctx, task); err != nil {
		log.L.Debugf("give the place %s on a network back: %v", task, err)
	}
}

// SetAllocator sets how the managers are asked for places on networks. It returns nil
// while this node can't ask them.
func (x *Executor) SetAllocator(allocator func() agent.ResourceAllocator) { x.allocator = allocator }

// Update gets a changed task. Nothing of a place can be changed by it.
func (a *attachment) Update(context.Context, *api.Task) error { return nil }

// Prepare makes the network known to the daemon.
func (a *attachment) Prepare(ctx context.Context) error {
	err := a.x.mesh.Join(ctx, a.task, a.container[:min(12, len(a.container))])
	if ctx.Err() == nil {
		a.isReady(err)
	}
	return err
}

// Start has nothing to do.
func (a *attachment) Start(context.Context) error { return nil }

// Wait tells other nodes of the container while it runs, until the context ends.
func (a *attachment) Wait(ctx context.Context) error {
	a.isReady(nil) // in an earlier process
	soon := looks
	var before look
	for {
		now, err := a.look()
		switch {
		case err != nil: // nothing is concluded from what can't be read
		case now.on:
			a.seen, a.last = true, time.Now()
			if err := a.tell(ctx, now); err != nil {
				return err
			}
		default:
			if err := a.tell(ctx, now); err != nil {
				return err
			}
			if a.seen || time.Since(a.last) > unseen {
				a.x.detach(ctx, a.task.ID)
			}
		}
		if soon--; err == nil && !now.equal(before) {
			before, soon = now, looks
		}
		pause := lookEach
		if soon > 0 {
			pause = lookSoon
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// look is what the daemon's record says of a container.
type look struct {
	on, running bool
	name        string
	in          mesh.Inside
}

func (l look) equal(o look) bool {
	return l.on == o.on && l.running == o.running && l.name == o.name && l.in.Netns == o.in.Netns
}

func (a *attachment) look() (l look, err error) {
	p, err := a.place()
	if err != nil {
		return l, err
	}
	found, err := a.x.host.Plain(a.container)
	if errdefs.IsNotFound(err) {
		return l, nil
	} else if err != nil {
		return l, err
	}
	aliases, on, err := found.Asks(p.Address)
	if err != nil || !on {
		return l, err
	}
	st, err := found.State()
	if err != nil {
		return l, err
	}
	netns, names := found.Network()
	return look{true, st.Running && netns != "", found.Name, mesh.Inside{Netns: netns, Names: names, Aliases: aliases}}, nil
}

func (a *attachment) tell(ctx context.Context, l look) error {
	a.telling.Lock()
	defer a.telling.Unlock()
	switch {
	case a.over:
		return nil
	case !l.running:
		a.x.mesh.Rest(a.task)
		return nil
	}
	if err := a.x.mesh.Serve(ctx, a.task, l.name, a.container, l.in); err != nil {
		return exec.MakeTemporary(err)
	}
	return nil
}

// Shutdown ends the place. The container is the user's, and runs on.
func (a *attachment) Shutdown(context.Context) error {
	if err := a.x.touch(); err != nil {
		return err
	}
	a.telling.Lock()
	defer a.telling.Unlock()
	a.over = true
	a.x.mesh.Leave(a.task)
	return nil
}

// Terminate is Shutdown.
func (a *attachment) Terminate(ctx context.Context) error { return a.Shutdown(ctx) }

// Remove is Shutdown.
func (a *attachment) Remove(ctx context.Context) error { return a.Shutdown(ctx) }

// Close ends the controller, and not the place.
func (a *attachment) Close() error {
	a.isReady(errors.New("the node is stopping"))
	a.x.mu.Lock()
	defer a.x.mu.Unlock()
	if a.x.attachments[a.task.ID] == a {
		delete(a.x.attachments, a.task.ID)
	}
	return nil
}
