// SPDX-License-Identifier: Apache-2.0

// Package nets is swarmkit's provider of networks: it gives networks their subnets, and
// services and tasks their addresses, by moby's allocator. What this release can't carry
// is refused here, before the cluster stores it.
package nets

import (
	"github.com/moby/moby/v2/daemon/libnetwork/cnmallocator"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/manager/allocator/networkallocator"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// NoEncryption is why an encrypted network is refused. It would be wrong to send its
// packets as plain text.
const NoEncryption = "encrypted overlay networks are not part of this release: create the network without the option encrypted, on hosts whose network is trusted"

// Provider is a networkallocator.Provider.
type Provider struct{ *cnmallocator.Provider }

// New returns a provider without plugins.
func New() Provider { return Provider{cnmallocator.NewProvider(nil)} }

// ValidateIPAMDriver accepts the default driver.
func (p Provider) ValidateIPAMDriver(d *api.Driver) error { return p.Provider.ValidateIPAMDriver(d) }

// ValidateNetworkDriver accepts overlay networks.
func (Provider) ValidateNetworkDriver(d *api.Driver) error {
	if d == nil {
		return nil
	}
	if d.Name != "" && d.Name != "overlay" {
		return status.Errorf(codes.Unimplemented, "networks of driver %s can't be networks of the swarm: use the driver overlay", d.Name)
	}
	if _, encrypted := d.Options["encrypted"]; encrypted {
		return status.Error(codes.Unimplemented, NoEncryption)
	}
	return nil
}

// ValidateIngressNetworkDriver accepts overlay networks.
func (p Provider) ValidateIngressNetworkDriver(d *api.Driver) error {
	return p.ValidateNetworkDriver(d)
}

// Own reports whether a network is one that each host has by itself, such as host.
func Own(n *api.Network) bool {
	return n != nil && n.Spec.Annotations.Labels[networkallocator.PredefinedLabel] == "true"
}
