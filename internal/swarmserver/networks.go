// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/v2/daemon/cluster/convert"
	"github.com/moby/swarmkit/v2/api"

	"holdfast/internal/api/wire"
	"holdfast/internal/errs"
	"holdfast/internal/filter"
	"holdfast/internal/swarmserver/nets"
)

func findNetwork(ctx context.Context, c api.ControlClient, ref string) (*api.Network, error) {
	list := func(f *api.ListNetworksRequest_Filters) ([]*api.Network, error) {
		res, err := c.ListNetworks(ctx, &api.ListNetworksRequest{Filters: f}, large)
		if err != nil {
			return nil, err
		}
		return res.Networks, nil
	}
	return one("network", ref, func() (*api.Network, error) {
		res, err := c.GetNetwork(ctx, &api.GetNetworkRequest{NetworkID: ref})
		if err != nil {
			return nil, err
		}
		return res.Network, nil
	}, func() ([]*api.Network, error) { return list(&api.ListNetworksRequest_Filters{Names: []string{ref}}) },
		func() ([]*api.Network, error) {
			return list(&api.ListNetworksRequest_Filters{IDPrefixes: []string{ref}})
		})
}

func (s *onManagers) inspectNetwork(r *wire.Request, _ http.ResponseWriter) (any, error) {
	if v, _ := s.view(); v.control == nil {
		// A worker knows the networks that its tasks are on, which the daemon shows.
		return nil, errs.NotFound("network %s not found", r.Name())
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		n, err := findNetwork(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		shown, err := convert.NetworkInspectFromGRPC(*n)
		return shown, err
	})
}

// listNetworks lists the networks of the cluster, which a worker does not know.
func (s *onManagers) listNetworks(r *wire.Request, _ http.ResponseWriter) (any, error) {
	f, err := filters(r, "dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return nil, err
	}
	found := []network.Summary{}
	if v, _ := s.view(); v.control == nil {
		return found, nil
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		list, used, err := clusterNetworks(ctx, v.control)
		if err != nil {
			return nil, err
		}
		dangling, only, err := f.Bool("dangling")
		if err != nil {
			return nil, errs.Invalid("%v", err)
		}
		for _, n := range list {
			shown := convert.BasicNetworkFromGRPC(*n)
			if only && dangling == (used[n.ID] || shown.Ingress) {
				continue
			}
			if f.Exact("driver", shown.Driver) && f.Prefix("id", n.ID) && f.Match("name", shown.Name) &&
				f.Exact("scope", shown.Scope) && f.Exact("type", "custom") && f.KV("label", shown.Labels) {
				found = append(found, network.Summary{Network: shown})
			}
		}
		return found, nil
	})
}

// clusterNetworks returns the networks that users have made, and the IDs of those that
// services or tasks are on.
func clusterNetworks(ctx context.Context, c api.ControlClient) ([]*api.Network, map[string]bool, error) {
	res, err := c.ListNetworks(ctx, &api.ListNetworksRequest{}, large)
	if err != nil {
		return nil, nil, err
	}
	used, err := usedNetworks(ctx, c)
	return slices.DeleteFunc(res.Networks, nets.Own), used, err
}

// usedNetworks are the IDs of the networks that services or tasks are on.
func usedNetworks(ctx context.Context, c api.ControlClient) (map[string]bool, error) {
	used := map[string]bool{}
	services, err := c.ListServices(ctx, &api.ListServicesRequest{}, large)
	if err != nil {
		return nil, err
	}
	for _, one := range services.Services {
		for _, n := range slices.Concat(one.Spec.Task.Networks, one.Spec.Networks) {
			used[n.Target] = true
		}
	}
	tasks, err := c.ListTasks(ctx, &api.ListTasksRequest{}, large)
	if err != nil {
		return nil, err
	}
	for _, t := range tasks.Tasks {
		for _, n := range t.Networks {
			if n.Network != nil && t.Status.State <= api.TaskStateRunning {
				used[n.Network.ID] = true
			}
		}
	}
	return used, nil
}

func (s *onManagers) createNetwork(r *wire.Request, w http.ResponseWriter) (any, error) {
	req, err := decode[network.CreateRequest](r, w)
	if err != nil {
		return nil, err
	}
	if req.Driver == "" {
		req.Driver = "overlay"
	}
	switch {
	case req.Name == network.NetworkBridge, req.Name == network.NetworkHost, req.Name == network.NetworkNone, req.Name == network.NetworkDefault, req.Name == "container":
		return nil, errs.Forbidden("%s is a pre-defined network and cannot be created", req.Name)
	case req.EnableIPv6 != nil && *req.EnableIPv6:
		return nil, errs.NotImplemented("overlay networks with IPv6 are not part of this release: create the network without it")
	case req.EnableIPv4 != nil && !*req.EnableIPv4:
		return nil, errs.Invalid("IPv4 must be enabled on an overlay network")
	case req.ConfigOnly, req.ConfigFrom != nil && req.ConfigFrom.Network != "":
		return nil, errs.NotImplemented("networks of the swarm with the configuration of another one are not part of this release")
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		if s.engine.HasNetwork(ctx, req.Name) {
			return nil, errs.Conflict("network with name %s already exists", req.Name)
		}
		spec := convert.BasicNetworkCreateToGRPC(req)
		res, err := v.control.CreateNetwork(ctx, &api.CreateNetworkRequest{Spec: &spec})
		if err != nil {
			return nil, err
		}
		return network.CreateResponse{ID: res.Network.ID}, nil
	})
}

func (s *onManagers) removeNetwork(r *wire.Request, w http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		n, err := findNetwork(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		if _, err := v.control.RemoveNetwork(ctx, &api.RemoveNetworkRequest{NetworkID: n.ID}); err != nil {
			return nil, err
		}
		w.WriteHeader(http.StatusNoContent)
		return streamed, nil
	})
}

// pruneNetworks removes the networks of the cluster that nothing uses.
func (s *onManagers) pruneNetworks(r *wire.Request, _ http.ResponseWriter) (any, error) {
	f, err := filters(r, "label", "label!", "until")
	if err != nil {
		return nil, err
	}
	until, err := f.Until(time.Now())
	if err != nil {
		return nil, errs.Invalid("%v", err)
	}
	report := network.PruneReport{NetworksDeleted: []string{}}
	if v, _ := s.view(); v.control == nil {
		return report, nil
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		list, used, err := clusterNetworks(ctx, v.control)
		if err != nil {
			return nil, err
		}
		for _, n := range list {
			if used[n.ID] || !prunable(convert.BasicNetworkFromGRPC(*n), f, until) {
				continue
			}
			if _, err := v.control.RemoveNetwork(ctx, &api.RemoveNetworkRequest{NetworkID: n.ID}); err == nil {
				report.NetworksDeleted = append(report.NetworksDeleted, n.Spec.Annotations.Name)
			}
		}
		return report, nil
	})
}

func prunable(n network.Network, f filter.Args, until time.Time) bool {
	return !n.Ingress && (until.IsZero() || n.Created.Before(until)) && f.KV("label", n.Labels) && (!f.Has("label!") || !f.KV("label!", n.Labels))
}

// leaveNetworks removes the overlay networks from this host.
func (s *server) leaveNetworks(ctx context.Context) error {
	ids, err := s.engine.Overlays(ctx)
	failed := []error{err}
	for _, id := range ids {
		failed = append(failed, s.engine.Disconnect(ctx, id))
	}
	return errors.Join(append(failed, s.mesh.Reset(ctx), s.engine.RemoveGateway(ctx))...)
}
