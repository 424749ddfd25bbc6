package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/container"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// spawnTimeout bounds how long a shim may take from its process's start to its
// hello. No container runs of it yet.
const spawnTimeout = 30 * time.Second

// ContainerStart starts a container. It answers errdefs.ErrNotModified if it
// runs already.
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
		return unavailable("start %s: the daemon is shutting down", a.view.Load().spec.Name)
	default:
	}
	err := a.ask(ctx, container.AskStart, func(_ container.Action, done func(error)) { a.launch(done) })
	if err == nil || errors.Is(err, errNothing) {
		return err
	}
	name := a.view.Load().spec.Name
	var call *proto.Error
	if errors.As(err, &call) && (call.ExitCode == 126 || call.ExitCode == 127) {
		// The command is at fault, not the engine.
		return invalid("start %s: %s", name, call.Message)
	}
	return fmt.Errorf("start %s: %w", name, err)
}

// launch begins a new life, in the loop and in the state Starting.
func (a *actor) launch(done func(error)) {
	before, rec, last := a.spec.Desired, a.rec, a.sandbox.Endpoints
	a.death = nil
	a.spec.Life++
	a.spec.Desired = container.DesiredRunning
	a.spec.Failure = nil
	a.spec.Sandbox = nil
	a.sandbox = network.Sandbox{}
	clients := a.clients
	a.clients = nil
	spec, req, mounts := a.spec, a.req, a.mounts
	a.launching, a.endedAtOnce = true, false

	go func() {
		// The effect is the container's, not the request's.
		err := a.e.launch(context.Background(), a, spec, req, mounts, clients, last)
		for _, c := range clients {
			c.client.File.Close()
		}
		a.post(func() {
			a.launching = false
			switch {
			case err != nil:
				a.rec = rec // of a life in which something ran
				a.failed(before, err)
			case a.endedAtOnce:
				a.ended()
			case a.state == container.Starting && a.shim != nil:
				// The shim's own word is under way, or its end.
				a.parked = append(a.parked, func() { done(nil) })
				return
			case a.state == container.Starting:
				a.lostShim() // it started, and is gone again
			}
			done(err)
		})
	}()
}

// failed takes a start back, in the loop.
func (a *actor) failed(desired container.Desired, err error) {
	a.log.Warn("start failed", "error", err)
	a.spec.Desired = desired
	a.spec.Sandbox = nil
	a.sandbox = network.Sandbox{}
	a.shim = nil
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
	a.saw(container.SawStartFailed)
	a.notRunning()
	if a.req.HostConfig.AutoRemove {
		a.removeSelf()
	}
}

// launch does what a start does, and takes back all of it if a step fails:
//
//	network record → spec persisted → ┬ netns, addresses, ports ┬ → run
//	                                  └ rootfs, bundle, shim    ┘
func (e *Engine) launch(ctx context.Context, a *actor, spec container.Spec, req request, mounts []mountPoint, clients []attachment, last []network.Endpoint) (err error) {
	var u undo
	defer func() {
		if err != nil {
			u.fail()
		}
	}()
	go e.host.WarmCgroups()

	sandbox, reserved, err := e.sandbox(ctx, spec, req, last)
	if err != nil {
		return err
	}
	failpoint.Here("launch.prepared")
	ports := make([]*os.File, 0, len(reserved))
	protoPorts := make([]proto.Port, 0, len(reserved))
	for _, r := range reserved {
		ports = append(ports, r.File)
		protoPorts = append(protoPorts, proto.Port{Proto: r.Proto, Target: r.Target})
	}
	defer func() {
		for _, f := range ports {
			f.Close()
		}
	}()
	joined, mounted := false, false
	u.add(func() {
		e.giveBack(spec.ID, sandbox, mounts)
		if joined {
			e.emitNetworks("disconnect", sandbox)
		}
		if mounted {
			e.emitUnmounts(spec.ID, mounts)
		}
		// Last: the network namespace was mounted in the run directory.
		_ = e.clearRun(spec.ID)
	})

	if spec.Sandbox, err = json.Marshal(sandbox); err != nil {
		return err
	}
	if root := e.config.Load().ExecRoot; spec.ExecRoot != root {
		// What an earlier life left below another exec root goes with it.
		if err := e.clearRun(spec.ID); err != nil {
			return err
		}
		spec.ExecRoot = root
	}
	if err := e.store.WriteSpec(&spec); err != nil {
		return err
	}
	failpoint.Here("launch.recorded")

	run := e.store.RunDir(spec.ID)
	if err := e.clearRun(spec.ID); err != nil {
		return err
	}
	if err := os.MkdirAll(run, 0o711); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	failpoint.Here("launch.made-run-directory")

	var shim Shim
	var g errgroup.Group
	g.Go(func() error {
		if err := e.networks.Join(ctx, sandbox); err != nil {
			return err
		}
		failpoint.Here("launch.joined")
		if err := e.networks.Publish(ctx, sandbox); err != nil {
			return err
		}
		failpoint.Here("launch.published")
		e.emitNetworks("connect", sandbox)
		joined = true
		return nil
	})
	g.Go(func() error {
		boot, err := e.bundle(ctx, spec, req, mounts, sandbox)
		if err != nil {
			return err
		}
		failpoint.Here("launch.bundled")
		boot.Ports = protoPorts
		ctx, cancel := context.WithTimeout(ctx, spawnTimeout)
		defer cancel()
		shim, err = e.shims.Spawn(ctx, client.Options{Binary: e.config.Load().ShimPath, Bootstrap: boot, Ports: ports, Release: e.release})
		return err
	})
	err = g.Wait()
	if shim != nil {
		u.add(func() {
			// The shim goes first: it holds the ports and the run directory.
			if err := e.putOut(shim, spec); err != nil {
				e.log.Error("the shim of a failed start does not leave", "container", spec.ID[:12], "error", err)
			}
			shim.Close()
		})
	}
	if err != nil {
		return err
	}
	e.emitMounts(spec.ID, mounts)
	mounted = true
	failpoint.Here("launch.spawned")

	// From here on the shim speaks for the container: what the loop knows of
	// this life must be there before its first word.
	a.post(func() {
		a.spec, a.sandbox, a.shim = spec, sandbox, shim
		a.publish()
	})
	if err := shim.Subscribe(ctx, 0, func(ev proto.Event) { a.post(func() { a.seen(ev) }) }); err != nil {
		return err
	}
	failpoint.Here("launch.subscribed")
	if err := e.serveNames(ctx, shim, spec.ID, sandbox); err != nil {
		return err
	}
	for _, c := range clients {
		if err := shim.Attach(ctx, c.attach, c.client.File); err != nil {
			// A client that can't be served keeps no container from running.
			a.log.Warn("attach failed", "error", err)
		}
	}
	a.giveWaits(shim)
	if _, err := shim.Start(ctx); err != nil {
		return err
	}
	failpoint.Here("launch.started")
	u.keep()
	a.watchShim(shim)
	return nil
}

// putOut ends a shim, whatever its container does, and returns when it is gone
// and nothing of the container runs.
func (e *Engine) putOut(shim Shim, spec container.Spec) error {
	ctx := context.Background()
	_, err := shim.Stop(ctx, proto.Stop{Signal: int(syscall.SIGKILL)})
	if errdefs.IsConflict(err) {
		err = shim.Shutdown(ctx) // nothing was ever started
	}
	if err != nil && !errdefs.IsUnavailable(err) {
		return err
	}
	<-shim.Done()
	if err != nil {
		// It went by itself, or it was killed and its container runs on.
		return e.killUnshimmed(spec.ID)
	}
	return nil
}

// sandbox prepares a container's network. In the mode container:ID there is
// nothing to prepare: the namespace is the other's.
func (e *Engine) sandbox(ctx context.Context, spec container.Spec, req request, last []network.Endpoint) (network.Sandbox, []network.Reserved, error) {
	if req.HostConfig.NetworkMode.IsContainer() {
		return network.Sandbox{}, nil, nil
	}
	r := networkRequest(spec, req)
	r.Last = last
	return e.networks.Prepare(ctx, r)
}

// networkRequest is what a container asks of the network.
func networkRequest(spec container.Spec, req request) network.Request {
	r := network.Request{
		ID:           spec.ID,
		Name:         spec.Name,
		Mode:         string(req.HostConfig.NetworkMode),
		PortBindings: req.HostConfig.PortBindings,
		Exposed:      req.Config.ExposedPorts,
		PublishAll:   req.HostConfig.PublishAllPorts,
	}
	if req.Networking != nil {
		r.Endpoints = req.Networking.EndpointsConfig
	}
	return r
}

// joinedBy reports whether other containers that run have joined a container's
// network namespace.
func (e *Engine) joinedBy(id string) bool {
	for _, a := range e.index.all() {
		v := a.view.Load()
		if mode := v.req.HostConfig.NetworkMode; mode.IsContainer() && v.state.Alive() {
			if peer, err := e.index.find(mode.ConnectedContainer()); err == nil && peer.id == id {
				return true
			}
		}
	}
	return false
}

// giveBack returns what a life used of the host: network, mounts and the
// volumes' mounts. Everything in it may have been done before. What fails is
// logged and done by the next start or restore, which find it by its name.
func (e *Engine) giveBack(id string, sandbox network.Sandbox, mounts []mountPoint) {
	if e.observes.Load() {
		return // the shim undoes what is its own, the next daemon the rest
	}
	ctx := context.Background()
	if sandbox.ID != "" {
		sandbox.Joined = e.joinedBy(id)
		if err := e.networks.Release(ctx, sandbox); err != nil {
			e.log.Error("network not released", "container", id[:12], "error", err)
		}
	}
	if err := e.unmount(id); err != nil {
		e.log.Error("not unmounted", "container", id[:12], "error", err)
	}
	for _, m := range mounts {
		if m.volume() {
			if err := e.volumes.Unmount(m.Name, id); err != nil {
				e.log.Error("volume not unmounted", "container", id[:12], "volume", m.Name, "error", err)
			}
		}
	}
}
