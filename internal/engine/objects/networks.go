// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"context"
	"slices"
	"time"

	api "github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/filter"
)

// Networks implements the API's calls for networks, except connect and disconnect,
// which change a container.
type Networks struct {
	store      NetworkStore
	containers Containers
	emit       Emit
}

// NewNetworks returns the networks in a store.
func NewNetworks(store NetworkStore, containers Containers, emit Emit) *Networks {
	return &Networks{store, containers, emit}
}

// NetworkStore is the networks as the API's calls need them.
type NetworkStore interface {
	List(f filter.Args) ([]api.Summary, error)
	Inspect(ref string, name func(container string) string) (api.Inspect, error)
	Network(ref string) (api.Network, error)
	Create(ctx context.Context, r api.CreateRequest) (string, error)
	Remove(ctx context.Context, ref string) (api.Network, error)
	Prune(ctx context.Context, f filter.Args, until time.Time, used func(id string) bool) (api.PruneReport, error)
}

// NetworkList lists networks.
func (o *Networks) NetworkList(ctx context.Context, f filter.Args) ([]api.Summary, error) {
	return o.store.List(f)
}

// NetworkInspect returns a network and the containers on it.
func (o *Networks) NetworkInspect(ctx context.Context, ref, scope string, verbose bool) (api.Inspect, error) {
	if scope != "" && scope != "local" {
		return api.Inspect{}, errs.NotFound("network %s not found", ref)
	}
	return o.store.Inspect(ref, o.containers.Name)
}

// NetworkCreate creates a network.
func (o *Networks) NetworkCreate(ctx context.Context, r api.CreateRequest) (api.CreateResponse, error) {
	if err := o.containers.Ready(ctx); err != nil {
		return api.CreateResponse{}, err
	}
	id, err := o.store.Create(context.WithoutCancel(ctx), r)
	if err != nil {
		return api.CreateResponse{}, err
	}
	if n, err := o.store.Network(id); err == nil {
		o.event("create", n)
	}
	return api.CreateResponse{ID: id}, nil
}

// NetworkRemove removes a network to which no running container is connected.
func (o *Networks) NetworkRemove(ctx context.Context, ref string) error {
	if err := o.containers.Ready(ctx); err != nil {
		return err
	}
	n, err := o.store.Remove(context.WithoutCancel(ctx), ref)
	if err == nil {
		o.event("destroy", n)
	}
	return err
}

// NetworksPrune removes the networks that no container's configuration names.
func (o *Networks) NetworksPrune(ctx context.Context, f filter.Args) (api.PruneReport, error) {
	none := api.PruneReport{NetworksDeleted: []string{}}
	if err := o.containers.Ready(ctx); err != nil {
		return none, err
	}
	if err := f.Check("label", "label!", "until"); err != nil {
		return none, errs.Invalid("%v", err)
	}
	until, err := f.Until(time.Now())
	if err != nil {
		return none, errs.Invalid("%v", err)
	}
	used := map[string]bool{}
	for _, name := range o.containers.NetworkNames() {
		if n, err := o.store.Network(name); err == nil {
			used[n.ID] = true
		}
	}
	before, err := o.store.List(filter.Args{})
	if err != nil {
		return none, err
	}
	report, err := o.store.Prune(context.WithoutCancel(ctx), f, until, func(id string) bool { return used[id] })
	for _, n := range before {
		if slices.Contains(report.NetworksDeleted, n.Name) {
			o.event("destroy", n.Network)
		}
	}
	o.emit.Pruned("network", 0)
	return report, err
}

func (o *Networks) event(action string, n api.Network) {
	o.emit("network", action, n.ID, map[string]string{"name": n.Name, "type": n.Driver})
}
