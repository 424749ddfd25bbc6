package engine

import (
	"context"
	"time"

	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/filter"
	"holdfast/internal/network"
)

// emitNetworks journals that a container joined its networks, or left them.
func (e *Engine) emitNetworks(action string, s network.Sandbox) {
	for _, ep := range s.Endpoints {
		e.emit("network", action, ep.NetworkID, map[string]string{
			"container": s.Container, "name": ep.Network, "type": networkDriver(ep.Network),
		}, time.Now())
	}
}

// networkDriver is the driver of a predefined network.
func networkDriver(name string) string {
	if name == mobynet.NetworkNone {
		return "null"
	}
	return name
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
	id, err := e.networks.Create(ctx, r)
	return mobynet.CreateResponse{ID: id}, err
}

// NetworkRemove removes a network.
func (e *Engine) NetworkRemove(ctx context.Context, ref string) error {
	return e.networks.Remove(ctx, ref)
}

// NetworkConnect connects a container to a network.
func (e *Engine) NetworkConnect(ctx context.Context, ref string, r mobynet.ConnectRequest) error {
	a, err := e.find(ctx, r.Container)
	if err != nil {
		return err
	}
	r.Container = a.id
	return e.networks.Connect(ctx, ref, r)
}

// NetworkDisconnect disconnects it.
func (e *Engine) NetworkDisconnect(ctx context.Context, ref string, r mobynet.DisconnectRequest) error {
	a, err := e.find(ctx, r.Container)
	if err != nil {
		return err
	}
	r.Container = a.id
	return e.networks.Disconnect(ctx, ref, r)
}

// NetworksPrune removes networks that nobody uses.
func (e *Engine) NetworksPrune(ctx context.Context, f filter.Args) (mobynet.PruneReport, error) {
	return e.networks.Prune(ctx, f)
}
