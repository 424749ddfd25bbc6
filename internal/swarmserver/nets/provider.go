// SPDX-License-Identifier: Apache-2.0

// Package nets is swarmkit's provider of networks. So far tasks can use the networks
// that each host has by itself; overlay networks, the routing mesh and the virtual
// addresses of services are refused with the reason.
package nets

import (
	"sync"

	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/manager/allocator/networkallocator"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// NoOverlay is why a request for an overlay network is refused.
const NoOverlay = "overlay networks are not part of this release: use the default network, --network host, or ports with mode=host"

var errNoOverlay = status.Error(codes.Unimplemented, NoOverlay)

// Provider is a networkallocator.Provider. Its zero value is ready.
type Provider struct{}

// PredefinedNetworks are those that each host has.
func (Provider) PredefinedNetworks() []networkallocator.PredefinedNetworkData {
	return []networkallocator.PredefinedNetworkData{{Name: "bridge", Driver: "bridge"}, {Name: "host", Driver: "host"}}
}

// SetDefaultVXLANUDPPort accepts any port, because it is recorded for later.
func (Provider) SetDefaultVXLANUDPPort(uint32) error { return nil }

// NewAllocator returns an allocator.
func (Provider) NewAllocator(*networkallocator.Config) (networkallocator.NetworkAllocator, error) {
	return &allocator{tasks: map[string]bool{}}, nil
}

// ValidateIPAMDriver refuses all.
func (Provider) ValidateIPAMDriver(d *api.Driver) error { return refuse(d) }

// ValidateIngressNetworkDriver refuses all.
func (Provider) ValidateIngressNetworkDriver(*api.Driver) error { return errNoOverlay }

// ValidateNetworkDriver refuses all.
func (Provider) ValidateNetworkDriver(*api.Driver) error { return errNoOverlay }

func refuse(d *api.Driver) error {
	if d == nil {
		return nil
	}
	return errNoOverlay
}

// allocator says what is allocated. Nothing of a host's own network has to be.
type allocator struct {
	mu sync.Mutex
	// tasks are those that were allocated by this allocator.
	tasks map[string]bool
}

// own reports whether a network is one that each host has. The network of the routing
// mesh is created by swarmkit with each cluster; until it works, it has no addresses,
// and no node is attached to it.
func own(n *api.Network) bool {
	return n != nil && n.Spec.Annotations.Labels[networkallocator.PredefinedLabel] == "true"
}

func (*allocator) IsAllocated(n *api.Network) bool {
	return n.DriverState != nil && (own(n) || networkallocator.IsIngressNetwork(n))
}

func (*allocator) Allocate(n *api.Network) error {
	if !own(n) && !networkallocator.IsIngressNetwork(n) {
		return errNoOverlay
	}
	name := "overlay"
	if n.Spec.DriverConfig != nil {
		name = n.Spec.DriverConfig.Name
	}
	n.DriverState = &api.Driver{Name: name}
	return nil
}

func (*allocator) Deallocate(*api.Network) error { return nil }

// IsServiceAllocated: a service has no addresses. The allocator of ports, which is
// swarmkit's own, is asked besides.
func (*allocator) IsServiceAllocated(s *api.Service, _ ...func(*networkallocator.ServiceAllocationOpts)) bool {
	return s.Endpoint != nil || s.Spec.Endpoint == nil
}

func (*allocator) AllocateService(s *api.Service) error {
	if networkallocator.IsIngressNetworkNeeded(s) {
		return errNoOverlay
	}
	if s.Endpoint == nil {
		s.Endpoint = &api.Endpoint{}
	}
	if s.Spec.Endpoint != nil {
		s.Endpoint.Spec = s.Spec.Endpoint.Copy()
	}
	return nil
}

func (*allocator) DeallocateService(*api.Service) error { return nil }

// IsTaskAllocated reports whether a task has what its networks need. For a task
// without networks it is false, so that swarmkit calls AllocateTask and copies the
// ports of the service to the task.
func (a *allocator) IsTaskAllocated(t *api.Task) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(t.Networks) > 0 && a.tasks[t.ID]
}

// AllocateTask gives a task no addresses: its host does.
func (a *allocator) AllocateTask(t *api.Task) error {
	for _, n := range t.Networks {
		if !own(n.Network) {
			return errNoOverlay
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tasks[t.ID] = true
	return nil
}

// DeallocateTask forgets a task.
func (a *allocator) DeallocateTask(t *api.Task) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tasks, t.ID)
	return nil
}

// No node needs an address for the balancing of load.
func (*allocator) IsAttachmentAllocated(*api.Node, *api.NetworkAttachment) bool { return true }
func (*allocator) AllocateAttachment(*api.Node, *api.NetworkAttachment) error   { return nil }
func (*allocator) DeallocateAttachment(*api.Node, *api.NetworkAttachment) error { return nil }
