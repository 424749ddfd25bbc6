package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/container"
	"holdfast/internal/failpoint"
	"holdfast/internal/filter"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// emitNetworks journals that a container joined its networks, or left them.
func (e *Engine) emitNetworks(action string, s network.Sandbox) {
	for _, ep := range s.Endpoints {
		e.emitEndpoint(action, s.Container, ep)
	}
}

func (e *Engine) emitEndpoint(action, id string, ep network.Endpoint) {
	driver := ""
	if n, err := e.networks.Network(ep.NetworkID); err == nil {
		driver = n.Driver
	}
	e.emit("network", action, ep.NetworkID, map[string]string{"container": id, "name": ep.Network, "type": driver}, time.Now())
}

// NetworkList lists networks.
func (e *Engine) NetworkList(ctx context.Context, f filter.Args) ([]mobynet.Summary, error) {
	return e.networks.List(f)
}

// NetworkInspect tells about a network and the containers on it.
func (e *Engine) NetworkInspect(ctx context.Context, ref, scope string, verbose bool) (mobynet.Inspect, error) {
	if scope != "" && scope != "local" {
		return mobynet.Inspect{}, notFound("network %s not found in scope %s", ref, scope)
	}
	return e.networks.Inspect(ref, func(id string) string {
		if a, err := e.index.find(id); err == nil {
			return a.view.Load().spec.Name
		}
		return ""
	})
}

// NetworkCreate creates a network.
func (e *Engine) NetworkCreate(ctx context.Context, r mobynet.CreateRequest) (mobynet.CreateResponse, error) {
	if err := e.ready(ctx); err != nil {
		return mobynet.CreateResponse{}, err
	}
	id, err := e.networks.Create(context.WithoutCancel(ctx), r)
	if err != nil {
		return mobynet.CreateResponse{}, err
	}
	e.emitNetwork("create", id)
	return mobynet.CreateResponse{ID: id}, nil
}

func (e *Engine) emitNetwork(action, ref string) {
	if n, err := e.networks.Network(ref); err == nil {
		e.emit("network", action, n.ID, map[string]string{"name": n.Name, "type": n.Driver}, time.Now())
	}
}

// NetworkRemove removes a network that no running container is on.
func (e *Engine) NetworkRemove(ctx context.Context, ref string) error {
	if err := e.ready(ctx); err != nil {
		return err
	}
	n, err := e.networks.Remove(context.WithoutCancel(ctx), ref)
	if err == nil {
		e.emit("network", "destroy", n.ID, map[string]string{"name": n.Name, "type": n.Driver}, time.Now())
	}
	return err
}

// NetworksPrune removes the networks that no container names.
func (e *Engine) NetworksPrune(ctx context.Context, f filter.Args) (mobynet.PruneReport, error) {
	none := mobynet.PruneReport{NetworksDeleted: []string{}}
	if err := e.ready(ctx); err != nil {
		return none, err
	}
	if err := f.Check("label", "label!", "until"); err != nil {
		return none, invalid("%v", err)
	}
	until, err := untilOf(f)
	if err != nil {
		return none, err
	}
	used := map[string]bool{}
	for _, a := range e.index.all() {
		for name := range e.networkSettings(a.view.Load()).Networks {
			if n, err := e.networks.Network(name); err == nil {
				used[n.ID] = true
			}
		}
	}
	report, err := e.networks.Prune(context.WithoutCancel(ctx), f, until, func(id string) bool { return used[id] })
	e.emitPrune("network", 0)
	return report, err
}

// NetworkConnect puts a container on a network, while it runs or not.
func (e *Engine) NetworkConnect(ctx context.Context, ref string, r mobynet.ConnectRequest) error {
	a, err := e.find(ctx, r.Container)
	if err != nil {
		return err
	}
	es := r.EndpointConfig
	if es == nil {
		es = &mobynet.EndpointSettings{}
	}
	return a.askNetwork(ctx, func() error { return a.connect(ref, es) })
}

// askNetwork brings a change of a container's networks before the loop. While
// what its last run used is given back it waits: the kernel's side of a network
// that was added meanwhile would be nobody's.
func (a *actor) askNetwork(ctx context.Context, change func() error) error {
	return a.ask(ctx, container.AskChange, func(_ container.Action, done func(error)) {
		var try func()
		try = func() {
			o := container.Step(a.state, container.AskChange)
			switch {
			case a.returning, o.Do == container.Wait:
				a.parked = append(a.parked, try)
			case o.Do == container.Refuse:
				done(a.refusal(container.AskChange, o.Why))
			default:
				done(change())
			}
		}
		try()
	})
}

// connect does it, in the loop: a few milliseconds of netlink.
func (a *actor) connect(ref string, es *mobynet.EndpointSettings) error {
	mode := a.req.HostConfig.NetworkMode
	if mode.IsHost() || mode.IsContainer() {
		return forbidden("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	n, err := a.e.networks.Check(ref, es)
	if err != nil {
		return err
	}
	req := a.req
	req.HostConfig, req.Networking = clonePtr(req.HostConfig), cloneNetworking(req.Networking)
	if _, on := a.e.networkSettings(a.view.Load()).Networks[n.Name]; on {
		return forbidden("endpoint with name %s already exists in network %s", a.spec.Name, n.Name)
	}
	req.Networking.EndpointsConfig[n.Name] = es.Copy()
	if mode.IsNone() {
		delete(req.Networking.EndpointsConfig, mobynet.NetworkNone)
		req.HostConfig.NetworkMode = moby.NetworkMode(n.Name)
	}
	if !a.joined() {
		return a.saveChanged(req, a.sandbox)
	}
	next, reserved, err := a.e.networks.With(a.sandbox, networkRequest(a.spec, req), n.ID, es)
	if err != nil {
		return err
	}
	defer closeReserved(reserved)
	return a.changeSandbox(req, next, reserved, "connect", next.Endpoints[len(next.Endpoints)-1])
}

// NetworkDisconnect takes a container off a network.
func (e *Engine) NetworkDisconnect(ctx context.Context, ref string, r mobynet.DisconnectRequest) error {
	a, err := e.find(ctx, r.Container)
	if err != nil {
		return err
	}
	return a.askNetwork(ctx, func() error { return a.disconnect(ref) })
}

func (a *actor) disconnect(ref string) error {
	on := a.e.networkSettings(a.view.Load()).Networks
	name := ref
	if n, err := a.e.networks.Network(ref); err == nil {
		name = n.Name
	} else if _, named := on[ref]; !named {
		return err
	}
	if _, is := on[name]; !is {
		return forbidden("container %s is not connected to network %s", a.id, name)
	}
	req := a.req
	req.HostConfig, req.Networking = clonePtr(req.HostConfig), cloneNetworking(req.Networking)
	delete(req.Networking.EndpointsConfig, name)
	if req.HostConfig.NetworkMode.NetworkName() == name {
		// Another of its networks is the first one now, or none is.
		req.HostConfig.NetworkMode = mobynet.NetworkNone
		for _, other := range slices.Sorted(maps.Keys(on)) {
			if other != name {
				req.HostConfig.NetworkMode = moby.NetworkMode(other)
				break
			}
		}
	}
	if !a.joined() {
		return a.saveChanged(req, a.sandbox)
	}
	i := slices.IndexFunc(a.sandbox.Endpoints, func(ep network.Endpoint) bool { return ep.Network == name })
	if i < 0 {
		return a.saveChanged(req, a.sandbox)
	}
	gone := a.sandbox.Endpoints[i]
	next, err := a.e.networks.Without(a.sandbox, name)
	if err != nil {
		return err
	}
	return a.changeSandbox(req, next, nil, "disconnect", gone)
}

// joined: the container has its network in the kernel.
func (a *actor) joined() bool { return a.state.Alive() && a.sandbox.ID != "" }

// changeSandbox stores a running container's next sandbox, makes the kernel and
// the shim agree, and tells. What fails half way is made good by the next
// restore: the record says what shall be.
func (a *actor) changeSandbox(req request, next network.Sandbox, reserved []network.Reserved, action string, ep network.Endpoint) error {
	before, was := a.sandbox, a.req
	if err := a.saveChanged(req, next); err != nil {
		a.e.networks.Revert(before, next)
		return errors.Join(err, a.saveChanged(was, before))
	}
	failpoint.Here("network.recorded")
	if err := a.e.networks.Change(context.Background(), before, next); err != nil {
		return fmt.Errorf("%s %s: %w", action, a.spec.Name, err)
	}
	failpoint.Here("network.changed")
	if err := a.e.moveFiles(a.spec, a.req, a.sandbox); err != nil {
		a.log.Warn("the container's hosts file was not brought up to date", "error", err)
	}
	if a.shim != nil {
		if !before.Named() && a.sandbox.Named() {
			if err := a.e.serveNames(context.Background(), a.shim, a.id, a.sandbox); err != nil {
				a.log.Warn("names do not resolve in the container until it is started again", "error", err)
			}
		}
		a.leadPorts(a.shim, a.sandbox, reserved)
	}
	a.e.emitEndpoint(action, a.id, ep)
	return nil
}

// leadPorts tells a shim where its container's ports lead, after that has
// joined or left a network. Sockets that the shim doesn't have go along, or
// after it has said so.
func (a *actor) leadPorts(shim Shim, s network.Sandbox, reserved []network.Reserved) {
	if len(s.Ports) == 0 {
		return
	}
	tell := func(m proto.Ports, reserved []network.Reserved) (proto.PortsReply, error) {
		m.Netlink = a.e.networks.TeardownBatch(s)
		files := make([]*os.File, 0, len(reserved))
		for _, r := range reserved {
			m.New = append(m.New, proto.Port{Proto: r.Proto, Target: r.Target})
			files = append(files, r.File)
		}
		return shim.Ports(context.Background(), m, files...)
	}
	reply, err := tell(proto.Ports{Ports: a.e.networks.Leads(s)}, reserved)
	if nets, ok := a.e.networks.(reserver); ok && err == nil && len(reply.Missing) > 0 {
		missing := s
		missing.Ports = nil
		for _, i := range reply.Missing {
			missing.Ports = append(missing.Ports, s.Ports[i])
		}
		again := nets.Reserve(context.Background(), missing)
		defer closeReserved(again)
		if len(again) > 0 {
			_, err = tell(proto.Ports{}, again)
		}
	}
	if err != nil {
		a.log.Warn("what the container's shim forwards of its published ports goes on to the address from before, until it is started again", "error", err)
	}
}

func closeReserved(reserved []network.Reserved) {
	for _, r := range reserved {
		r.File.Close()
	}
}

// saveChanged persists a request and a sandbox, in the loop.
func (a *actor) saveChanged(req request, s network.Sandbox) error {
	if s.ID != "" {
		raw, err := json.Marshal(s)
		if err != nil {
			return err
		}
		a.spec.Sandbox = raw
	}
	if err := a.saveRequest(req); err != nil {
		return err
	}
	a.sandbox = s
	err := a.save()
	a.publish()
	return err
}

func cloneNetworking(n *mobynet.NetworkingConfig) *mobynet.NetworkingConfig {
	out := &mobynet.NetworkingConfig{EndpointsConfig: map[string]*mobynet.EndpointSettings{}}
	if n != nil {
		maps.Copy(out.EndpointsConfig, n.EndpointsConfig)
	}
	return out
}

func clonePtr[T any](p *T) *T {
	c := *p
	return &c
}
