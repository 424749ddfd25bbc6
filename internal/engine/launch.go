// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	mobynet "github.com/moby/moby/api/types/network"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/container"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// spawnTimeout bounds the time from the start of a shim's process until it answers
// Hello. The container does not run yet.
const spawnTimeout = 30 * time.Second

// ContainerStart starts a container. It returns errdefs.ErrNotModified if the
// container already runs.
func (e *Engine) ContainerStart(ctx context.Context, ref string) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	return a.start(ctx)
}

func (a *actor) start(ctx context.Context) error {
	select {
	case <-a.e.closing:
		return errs.Unavailable("start %s: the daemon is shutting down", a.view.Load().spec.Name)
	default:
	}
	err := a.ask(ctx, container.AskStart, func(_ container.Action, done func(error)) { beginLaunch(a, done) })
	if err == nil || errors.Is(err, errNothing) {
		return err
	}
	name := a.view.Load().spec.Name
	var call *proto.Error
	if errors.As(err, &call) && (call.ExitCode == 126 || call.ExitCode == 127) {
		// The container's command is wrong: the client's error, not the engine's.
		return errs.Invalid("start %s: %s", name, call.Message)
	}
	return fmt.Errorf("start %s: %w", name, err)
}

// beginLaunch begins a new life, in the loop and in the state Starting. done is
// called with the result.
func beginLaunch(a *actor, done func(error)) {
	before, rec, endpoints := a.spec.Desired, a.rec, a.sandbox.Endpoints
	a.ending.begin()
	a.spec.Life++
	if a.hasRun() {
		a.spec.Ran = &container.LastRun{Started: rec.Started, Finished: rec.Finished, ExitCode: rec.ExitCode}
	}
	a.spec.Desired = container.DesiredRunning
	a.spec.Failure = nil
	a.spec.Sandbox = nil
	a.sandbox = network.Sandbox{}
	clients := a.clients
	a.clients = nil
	order := launchOrder{a.spec, a.req, a.mounts, clients, endpoints, rec}
	go func() {
		// The end of the request does not cancel the start.
		err := a.effects.launch(context.Background(), a, order)
		for _, c := range clients {
			c.client.File.Close()
		}
		a.post(func() {
			if err != nil {
				a.rec = rec // the last record of a life in which the container ran
				startFailed(a, before, err)
				done(err)
				return
			}
			o := a.step(container.SawStarted)
			a.carryOut(o)
			if o.Next.State == container.Starting && o.Do == container.Accept {
				// The shim's report that the container runs, or that it has ended, has not
				// arrived yet.
				a.afterStarting(func() { done(nil) })
				return
			}
			done(nil)
		})
	}()
}

// afterStarting runs fn once the container has left the state Starting, in the
// loop.
func (a *actor) afterStarting(fn func()) {
	a.parked = append(a.parked, func() {
		if a.phase.State == container.Starting {
			a.afterStarting(fn)
			return
		}
		fn()
	})
}

// startFailed records a start that has failed, in the loop. launch has rolled back
// its effects.
func startFailed(a *actor, desired container.Desired, err error) {
	a.log.Warn("start failed", "error", err)
	a.spec.Desired = desired
	a.spec.Sandbox = nil
	a.sandbox = network.Sandbox{}
	f := &container.Failure{ExitCode: 128, Error: err.Error(), Time: time.Now()}
	var call *proto.Error
	if errors.As(err, &call) && call.ExitCode != 0 {
		f.ExitCode = call.ExitCode
	}
	a.spec.Failure = f
	failpoint.Here("launch.undone")
	if err := a.save(); err != nil {
		a.log.Error("the failed start could not be recorded", "error", err)
	}
	failpoint.Here("launch.failed")
	o := a.step(container.SawStartFailed)
	a.journalDeath() // in case the container ran for a moment
	a.waiters.notRunning(a.exit())
	a.carryOut(o)
}

// launchOrder is what a start is made from.
type launchOrder struct {
	spec      container.Spec
	req       request
	mounts    []mountPoint
	clients   []attachment
	endpoints []network.Endpoint // of the last life
	last      proto.State        // the shim's last record of the last life
}

// launch is a start that is under way.
type launch struct {
	*hostEffects
	launchOrder
	undo     undo
	sandbox  network.Sandbox
	reserved []network.Reserved // host ports
	shim     Shim

	joined  bool // the events of joining the networks are journalled
	mounted bool // and those of mounting the volumes
}

// launch performs a start. If a step fails, it rolls back the steps before:
//
//	network record → spec persisted → ┬ netns, addresses, ports ┬ → run
//	                                  └ rootfs, bundle, shim    ┘
func (h *hostEffects) launch(ctx context.Context, a *actor, o launchOrder) (err error) {
	l := launch{hostEffects: h, launchOrder: o}
	defer func() {
		if err != nil {
			a.post(a.ending.rollBack)
			l.undo.rollBack()
		}
	}()
	// If the last shim could not clean up, as when its folder was removed, the OCI
	// runtime still has the state of the last run and would refuse to start another.
	if err := h.killUnshimmed(l.spec.ID); err != nil {
		return fmt.Errorf("clear the last run: %w", err)
	}
	go h.bundler.host.WarmCgroups()

	if l.sandbox, l.reserved, err = h.prepareSandbox(ctx, l.spec, l.req, l.endpoints); err != nil {
		return err
	}
	failpoint.Here("launch.prepared")
	defer closeReserved(l.reserved)
	l.undo.add(l.giveBackAll)
	if err := l.record(); err != nil {
		return err
	}
	if err := l.build(ctx); err != nil {
		return err
	}
	if err := l.connect(ctx, a); err != nil {
		return err
	}
	if _, err := l.shim.Start(ctx); err != nil {
		return err
	}
	failpoint.Here("launch.started")
	l.undo.commit()
	a.watchShim(l.shim)
	return nil
}

// giveBackAll undoes what the start has done to the host.
func (l *launch) giveBackAll() {
	l.giveBack(l.spec.ID, l.sandbox, l.mounts)
	if err := l.runtimes.removeCgroups(l.spec); err != nil {
		l.log.Warn("the cgroups of a failed start could not be removed", "container", l.spec.ID[:12], "error", err)
	}
	if l.joined {
		l.journal.endpoints("disconnect", l.sandbox)
	}
	if l.mounted {
		l.journal.unmounts(l.spec.ID, l.mounts)
	}
	// Last, because the network namespace is mounted in the run directory.
	_ = l.mounter.clearRun(l.spec.ID)
}

// record persists the spec of the new life and makes its run directory.
func (l *launch) record() (err error) {
	id := l.spec.ID
	if l.spec.Sandbox, err = json.Marshal(l.sandbox); err != nil {
		return err
	}
	if root := l.config.Load().ExecRoot; l.spec.ExecRoot != root {
		// An earlier life may have left its run directory below another exec root.
		if err := l.mounter.clearRun(id); err != nil {
			return err
		}
		l.spec.ExecRoot = root
	}
	if err := l.store.WriteSpec(&l.spec); err != nil {
		return err
	}
	failpoint.Here("launch.recorded")
	if err := l.mounter.clearRun(id); err != nil {
		return err
	}
	if err := os.MkdirAll(l.store.RunDir(id), 0o710); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	failpoint.Here("launch.made-run-directory")
	return nil
}

// build makes the network and, at the same time, the bundle and the shim.
func (l *launch) build(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return l.joinNetworks(ctx) })
	g.Go(func() error { return l.spawn(ctx) })
	err := g.Wait()
	if l.shim != nil {
		l.undo.add(func() {
			// The shim is stopped first: it has the ports and the run directory open.
			if err := l.stopShim(l.shim, l.spec); err != nil {
				l.log.Error("the shim of a failed start could not be stopped", "container", l.spec.ID[:12], "error", err)
			}
			l.shim.Close()
		})
	}
	if err != nil {
		return err
	}
	l.journal.mounts(l.spec.ID, l.mounts)
	l.mounted = true
	failpoint.Here("launch.spawned")
	return nil
}

func (l *launch) joinNetworks(ctx context.Context) error {
	if err := l.networks.Join(ctx, l.sandbox); err != nil {
		return err
	}
	failpoint.Here("launch.joined")
	if err := l.networks.Publish(ctx, l.sandbox); err != nil {
		return err
	}
	failpoint.Here("launch.published")
	l.journal.endpoints("connect", l.sandbox)
	l.joined = true
	return nil
}

func (l *launch) spawn(ctx context.Context) (err error) {
	boot, err := l.bundler.bundle(ctx, l.spec, l.req, l.mounts, l.sandbox, l.last)
	if err != nil {
		return err
	}
	failpoint.Here("launch.bundled")
	ports := make([]*os.File, 0, len(l.reserved))
	boot.Ports = make([]proto.Port, 0, len(l.reserved))
	for _, r := range l.reserved {
		ports = append(ports, r.File)
		boot.Ports = append(boot.Ports, proto.Port{Proto: r.Proto, Target: r.Target})
	}
	ctx, cancel := context.WithTimeout(ctx, spawnTimeout)
	defer cancel()
	l.shim, err = l.shims.Spawn(ctx, client.Options{Binary: l.config.Load().ShimPath, Bootstrap: boot, Ports: ports, Release: l.release})
	return err
}

// connect makes the actor receive the shim's reports, and passes the clients on to
// the shim.
func (l *launch) connect(ctx context.Context, a *actor) error {
	// From here on the shim reports on the container. The loop must know the new
	// life before the first report.
	shim, spec, sandbox := l.shim, l.spec, l.sandbox
	a.post(func() {
		a.spec, a.sandbox, a.shim = spec, sandbox, shim
		a.step(container.SawShim)
	})
	if to, ok := shim.(acknowledger); ok {
		to.Heard(0, 0)
	}
	if err := shim.Subscribe(ctx, 0, func(ev proto.Event) { a.post(func() { receive(a, shim, ev, a.handleEvent) }) }); err != nil {
		return err
	}
	failpoint.Here("launch.subscribed")
	if err := l.names.serve(ctx, shim, spec.ID, sandbox); err != nil {
		return err
	}
	for _, c := range l.clients {
		if err := shim.Attach(ctx, c.attach, c.client.File); err != nil {
			// A client that can't be attached must not prevent the start.
			a.log.Warn("attach failed", "error", err)
		}
	}
	a.handOverWaits(shim)
	return nil
}

// prepareSandbox prepares a container's network. In the mode container:ID there is nothing
// to prepare: the namespace belongs to the other container.
func (h *hostEffects) prepareSandbox(ctx context.Context, spec container.Spec, req request, last []network.Endpoint) (network.Sandbox, []network.Reserved, error) {
	if req.HostConfig.NetworkMode.IsContainer() {
		return network.Sandbox{}, nil, nil
	}
	r := networkRequest(spec, req)
	r.Last = last
	return h.networks.Prepare(ctx, r)
}

// networkRequest returns what a container requests of the network.
func networkRequest(spec container.Spec, req request) network.Request {
	r := network.Request{
		ID:           spec.ID,
		Name:         spec.Name,
		Mode:         string(req.HostConfig.NetworkMode),
		PortBindings: req.HostConfig.PortBindings,
		Exposed:      req.Config.ExposedPorts,
		PublishAll:   req.HostConfig.PublishAllPorts,
	}
	if req.Config.NetworkDisabled {
		r.Mode = mobynet.NetworkNone
		return r
	}
	r.NoIPv6 = withoutIPv6(req)
	for _, l := range linksOf(req) {
		r.LegacyLinks = append(r.LegacyLinks, l.to)
	}
	if req.Networking != nil {
		r.Endpoints, r.Only = req.Networking.EndpointsConfig, req.Only
	}
	return r
}

// withoutIPv6 reports whether IPv6 is disabled for all interfaces of a container.
func withoutIPv6(req request) bool {
	return req.HostConfig.Sysctls["net.ipv6.conf.all.disable_ipv6"] == "1"
}
