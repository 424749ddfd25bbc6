// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"cmp"
	"context"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/v2/daemon/cluster/convert"
	"github.com/moby/swarmkit/v2/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"holdfast/internal/api/wire"
	"holdfast/internal/errs"
)

func findService(ctx context.Context, c api.ControlClient, ref string, defaults bool) (*api.Service, error) {
	list := func(f *api.ListServicesRequest_Filters) ([]*api.Service, error) {
		res, err := c.ListServices(ctx, &api.ListServicesRequest{Filters: f}, large)
		if err != nil {
			return nil, err
		}
		return res.Services, nil
	}
	get := func(id string) (*api.Service, error) {
		res, err := c.GetService(ctx, &api.GetServiceRequest{ServiceID: id, InsertDefaults: defaults})
		if err != nil {
			return nil, err
		}
		return res.Service, nil
	}
	found, err := one("service", ref, func() (*api.Service, error) { return get(ref) },
		func() ([]*api.Service, error) { return list(&api.ListServicesRequest_Filters{Names: []string{ref}}) },
		func() ([]*api.Service, error) {
			return list(&api.ListServicesRequest_Filters{IDPrefixes: []string{ref}})
		})
	if err != nil || !defaults {
		return found, err
	}
	return get(found.ID) // the list has no defaults
}

func (s *onManagers) listServices(r *wire.Request, _ http.ResponseWriter) (any, error) {
	f, err := filters(r, "name", "id", "label", "mode", "runtime")
	if err != nil {
		return nil, err
	}
	runtimes := f["runtime"]
	if len(runtimes) == 0 {
		runtimes = []string{string(swarm.RuntimeContainer)}
	}
	withStatus := r.Bool("status") && !r.Version.Before(41)
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		res, err := v.control.ListServices(ctx, &api.ListServicesRequest{Filters: &api.ListServicesRequest_Filters{
			NamePrefixes: f["name"], IDPrefixes: f["id"], Labels: pairs(f["label"]), Runtimes: runtimes,
		}}, large)
		if err != nil {
			return nil, err
		}
		services := []swarm.Service{}
		var ids []string
		for _, one := range res.Services {
			if f.Has("mode") && !slices.Contains(f["mode"], modeOf(one)) {
				continue
			}
			converted, err := convert.ServiceFromGRPC(*one)
			if err != nil {
				return nil, err
			}
			services, ids = append(services, converted), append(ids, one.ID)
		}
		if !withStatus {
			return services, nil
		}
		states, err := v.control.ListServiceStatuses(ctx, &api.ListServiceStatusesRequest{Services: ids}, large)
		if err != nil {
			return nil, err
		}
		for _, st := range states.Statuses {
			if i := slices.Index(ids, st.ServiceID); i >= 0 {
				services[i].ServiceStatus = &swarm.ServiceStatus{RunningTasks: st.RunningTasks, DesiredTasks: st.DesiredTasks, CompletedTasks: st.CompletedTasks}
			}
		}
		return services, nil
	})
}

func modeOf(s *api.Service) string {
	switch s.Spec.GetMode().(type) {
	case *api.ServiceSpec_Global:
		return "global"
	case *api.ServiceSpec_Replicated:
		return "replicated"
	case *api.ServiceSpec_ReplicatedJob:
		return "replicated-job"
	case *api.ServiceSpec_GlobalJob:
		return "global-job"
	}
	return ""
}

func (s *onManagers) inspectService(r *wire.Request, _ http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		service, err := findService(ctx, v.control, r.Name(), r.Bool("insertDefaults"))
		if err != nil {
			return nil, err
		}
		converted, err := convert.ServiceFromGRPC(*service)
		return converted, err
	})
}

func (s *onManagers) removeService(r *wire.Request, _ http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		service, err := findService(ctx, v.control, r.Name(), false)
		if err != nil {
			return nil, err
		}
		_, err = v.control.RemoveService(ctx, &api.RemoveServiceRequest{ServiceID: service.ID})
		return nil, err
	})
}

// serviceRequest is the body of a request for a service. Networks is the field that
// old clients use instead of the one in TaskTemplate.
type serviceRequest struct {
	swarm.ServiceSpec
	Networks []swarm.NetworkAttachmentConfig `json:",omitempty"`
}

// readService reads the specification of a service and refuses what can't be run.
func (s *onManagers) readService(r *wire.Request, w http.ResponseWriter) (*swarm.ServiceSpec, error) {
	req, err := decode[serviceRequest](r, w)
	if err != nil {
		return nil, err
	}
	spec := &req.ServiceSpec
	if r.Version.Before(44) && len(spec.TaskTemplate.Networks) == 0 {
		spec.TaskTemplate.Networks = req.Networks
	}
	fromOlder(spec, r.Version)
	switch spec.TaskTemplate.Runtime {
	case "", swarm.RuntimeContainer:
	default:
		return nil, errs.NotImplemented("services of runtime %q are not part of this release: use containers", spec.TaskTemplate.Runtime)
	}
	if c := spec.TaskTemplate.ContainerSpec; c != nil {
		for _, m := range c.Mounts {
			if m.Type == "cluster" {
				return nil, errs.NotImplemented("cluster volumes are not part of this release: use volumes of the host or bind mounts")
			}
		}
	}
	return spec, nil
}

// fromOlder removes what clients of an API version can't have meant.
func fromOlder(spec *swarm.ServiceSpec, v wire.Version) {
	if r := spec.TaskTemplate.Resources; r != nil && v.Before(52) {
		r.SwapBytes, r.MemorySwappiness = nil, nil
	}
	if r := spec.TaskTemplate.Resources; r != nil && r.Limits != nil && v.Before(41) {
		r.Limits.Pids = 0
	}
	if p := spec.TaskTemplate.Placement; p != nil && v.Before(40) {
		p.MaxReplicas = 0
	}
	c := spec.TaskTemplate.ContainerSpec
	if c == nil {
		return
	}
	if v.Before(40) {
		c.Sysctls = nil
	}
	if v.Before(41) {
		c.CapabilityAdd, c.CapabilityDrop, c.Ulimits = nil, nil, nil
	}
	if v.Before(44) && c.Healthcheck != nil {
		c.Healthcheck.StartInterval = 0
	}
	if v.Before(46) {
		c.OomScoreAdj = 0
		for i := range c.Mounts {
			if t := c.Mounts[i].TmpfsOptions; t != nil {
				t.Options = nil
			}
		}
	}
}

// attach replaces the names of networks by the IDs of the cluster's.
func (s *onManagers) attach(ctx context.Context, c api.ControlClient, spec *swarm.ServiceSpec) error {
	for i, n := range spec.TaskTemplate.Networks {
		id, err := s.networkID(ctx, c, n.Target)
		if err != nil {
			return err
		}
		spec.TaskTemplate.Networks[i].Target = id
	}
	return nil
}

func (s *onManagers) networkID(ctx context.Context, c api.ControlClient, ref string) (string, error) {
	name := ref
	// A client may name a network of this host by its ID.
	if own, err := s.engine.NetworkName(ctx, ref); err == nil {
		name = own
	}
	found, err := findNetwork(ctx, c, name)
	if err == nil {
		return found.ID, nil
	}
	if !errdefs.IsNotFound(err) {
		return "", err
	}
	if name != ref || name == "none" {
		return "", errs.Invalid("The network %s cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the overlay driver.", name)
	}
	return "", errs.NotFound("network %s not found", ref)
}

// portsFree returns an error if this node uses a port that a service is about to publish
// on all nodes. Of other nodes it can't be known here: they say so in their logs. Ports
// that the service has already are its own.
func (s *onManagers) portsFree(spec *swarm.ServiceSpec, present *api.EndpointSpec) error {
	if spec.EndpointSpec == nil {
		return nil
	}
	for _, p := range spec.EndpointSpec.Ports {
		if p.PublishedPort == 0 || p.PublishedPort > math.MaxUint16 || p.PublishMode == swarm.PortConfigPublishModeHost {
			continue
		}
		if present != nil && slices.ContainsFunc(present.Ports, func(had *api.PortConfig) bool {
			return had.PublishedPort == p.PublishedPort && strings.EqualFold(had.Protocol.String(), string(p.Protocol))
		}) {
			continue
		}
		if err := s.mesh.Free(cmp.Or(string(p.Protocol), "tcp"), uint16(p.PublishedPort)); err != nil {
			return err
		}
	}
	return nil
}

// credentials keeps the credentials of a registry with the service, for the nodes that
// pull its image.
func credentials(spec *api.ServiceSpec, encoded string) {
	if c := spec.Task.GetContainer(); c != nil && encoded != "" {
		c.PullOptions = &api.ContainerSpec_PullOptions{RegistryAuth: encoded}
	}
}

// names is how many names are tried for a service without one.
const names = 6

func (s *onManagers) createService(r *wire.Request, w http.ResponseWriter) (any, error) {
	spec, err := s.readService(r, w)
	if err != nil {
		return nil, err
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		if err := s.attach(ctx, v.control, spec); err != nil {
			return nil, err
		}
		if err := s.portsFree(spec, nil); err != nil {
			return nil, err
		}
		chosen := spec.Name == ""
		for try := 0; ; try++ {
			if chosen {
				spec.Name = "service_" + strconv.FormatUint(uint64(rand.Uint32()), 36)
			}
			converted, err := convert.ServiceSpecToGRPC(*spec)
			if err != nil {
				return nil, errs.Invalid("%s", err)
			}
			credentials(&converted, r.Header.Get(registry.AuthHeader))
			res, err := v.control.CreateService(ctx, &api.CreateServiceRequest{Spec: &converted})
			if chosen && try < names && status.Code(err) == codes.AlreadyExists {
				continue
			}
			if err != nil {
				return nil, err
			}
			return swarm.ServiceCreateResponse{ID: res.Service.ID}, nil
		}
	})
}

func (s *onManagers) updateService(r *wire.Request, w http.ResponseWriter) (any, error) {
	spec, err := s.readService(r, w)
	if err != nil {
		return nil, err
	}
	version, err := objectVersion(r, "service")
	if err != nil {
		return nil, err
	}
	rollback := api.UpdateServiceRequest_NONE
	switch way := r.Query.Get("rollback"); way {
	case "", "none":
	case "previous":
		rollback = api.UpdateServiceRequest_PREVIOUS
	default:
		return nil, errs.Invalid("unrecognized rollback option %s", way)
	}
	from := r.Query.Get("registryAuthFrom")
	switch swarm.RegistryAuthSource(from) {
	case "", swarm.RegistryAuthFromSpec, swarm.RegistryAuthFromPreviousSpec:
	default:
		return nil, errs.Invalid("invalid registryAuthFrom '%s'", from)
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		if err := s.attach(ctx, v.control, spec); err != nil {
			return nil, err
		}
		present, err := findService(ctx, v.control, r.Name(), false)
		if err != nil {
			return nil, err
		}
		if err := s.portsFree(spec, present.Spec.Endpoint); err != nil {
			return nil, err
		}
		converted, err := convert.ServiceSpecToGRPC(*spec)
		if err != nil {
			return nil, errs.Invalid("%s", err)
		}
		if encoded := r.Header.Get(registry.AuthHeader); encoded != "" {
			credentials(&converted, encoded)
		} else if err := keepCredentials(&converted, present, from); err != nil {
			return nil, err
		}
		_, err = v.control.UpdateService(ctx, &api.UpdateServiceRequest{
			ServiceID: present.ID, Spec: &converted, ServiceVersion: &api.Version{Index: version}, Rollback: rollback,
		})
		if err != nil {
			return nil, err
		}
		return swarm.ServiceUpdateResponse{}, nil
	})
}

// keepCredentials keeps those that the service has, or had before its last update.
func keepCredentials(next *api.ServiceSpec, present *api.Service, from string) error {
	old := &present.Spec
	if swarm.RegistryAuthSource(from) == swarm.RegistryAuthFromPreviousSpec {
		if old = present.PreviousSpec; old == nil {
			return errs.Invalid("service does not have a previous spec")
		}
	}
	if c, had := next.Task.GetContainer(), old.Task.GetContainer(); c != nil && had != nil {
		c.PullOptions = had.PullOptions
	}
	return nil
}
