package network

import (
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// A configuration-only network has no link and no containers: its record holds
// what others are created with (docker network create --config-only and
// --config-from).

// configured gives the request for a network with the configuration that it
// names. Errors: ErrNotFound, ErrPermissionDenied (something is configured
// twice).
func (m *Manager) configured(r network.CreateRequest) (network.CreateRequest, error) {
	if r.ConfigFrom == nil || r.ConfigFrom.Network == "" {
		return r, nil
	}
	if r.ConfigOnly {
		return r, forbidden("a configuration network cannot depend on another configuration network")
	}
	if r.EnableIPv4 != nil && !*r.EnableIPv4 || r.EnableIPv6 != nil && *r.EnableIPv6 || len(r.Labels) > 0 ||
		r.IPAM != nil && (len(r.IPAM.Config) > 0 || len(r.IPAM.Options) > 0) {
		return r, forbidden("user specified configurations are not supported if the network depends on a configuration network")
	}
	if len(r.Options) > 0 {
		return r, forbidden("network driver options are not supported if the network depends on a configuration network")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	from := m.networks[r.ConfigFrom.Network]
	if from == nil || !from.ConfigOnly {
		return r, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("configuration network %q does not exist", r.ConfigFrom.Network))
	}
	r.EnableIPv4, r.EnableIPv6 = &from.EnableIPv4, &from.EnableIPv6
	r.Labels, r.Options = maps.Clone(from.Labels), maps.Clone(from.Options)
	r.IPAM = &network.IPAM{Options: maps.Clone(from.IPAMOptions)}
	for _, s := range from.Subnets {
		r.IPAM.Config = append(r.IPAM.Config, s.api())
	}
	return r, nil
}

// judgeConfigOnly makes the record of a configuration-only network of that of
// any other.
func (rec *record) judgeConfigOnly(asked *network.IPAM) error {
	if rec.Internal || rec.Attachable {
		return forbidden("configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
	}
	rec.ConfigOnly, rec.Driver, rec.MTU = true, driverNull, 0
	if asked == nil {
		return nil
	}
	for _, c := range asked.Config {
		s, err := judgeSubnet(c)
		if err != nil {
			return err
		}
		rec.Subnets = append(rec.Subnets, s)
	}
	return nil
}

// usable is an error for a network that no container can be on.
func (n *object) usable() error {
	if n.ConfigOnly {
		return forbidden("cannot create endpoint on configuration-only network")
	}
	return nil
}

// configures names a network that was created with the configuration of n.
// m.mu is held.
func (m *Manager) configures(n *object) bool {
	for _, o := range m.networks {
		if n.ConfigOnly && o.ConfigFrom == n.Name {
			return true
		}
	}
	return false
}
