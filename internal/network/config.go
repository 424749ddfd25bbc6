// SPDX-License-Identifier: Apache-2.0

package network

import (
	"maps"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
)

// A configuration-only network has no interface and no containers. Its record only
// holds settings that other networks are created with (docker network create
// --config-only and --config-from).

// configured returns the request with the settings of the configuration-only
// network that it names. Errors: ErrNotFound, ErrPermissionDenied (the request
// and the configuration both give a setting).
func (reg *registry) configured(r network.CreateRequest) (network.CreateRequest, error) {
	if r.ConfigFrom == nil || r.ConfigFrom.Network == "" {
		return r, nil
	}
	if r.ConfigOnly {
		return r, errs.Forbidden("a configuration network cannot depend on another configuration network")
	}
	if r.EnableIPv4 != nil && !*r.EnableIPv4 || r.EnableIPv6 != nil && *r.EnableIPv6 || len(r.Labels) > 0 ||
		r.IPAM != nil && (len(r.IPAM.Config) > 0 || len(r.IPAM.Options) > 0) {
		return r, errs.Forbidden("user specified configurations are not supported if the network depends on a configuration network")
	}
	if len(r.Options) > 0 {
		return r, errs.Forbidden("network driver options are not supported if the network depends on a configuration network")
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	from := reg.inv.networks[r.ConfigFrom.Network]
	if from == nil || !from.ConfigOnly {
		return r, errs.NotFound("configuration network %q does not exist", r.ConfigFrom.Network)
	}
	r.EnableIPv4, r.EnableIPv6 = &from.EnableIPv4, &from.EnableIPv6
	r.Labels, r.Options = maps.Clone(from.Labels), maps.Clone(from.Options)
	r.IPAM = &network.IPAM{Options: maps.Clone(from.IPAMOptions)}
	for _, s := range from.Subnets {
		r.IPAM.Config = append(r.IPAM.Config, s.api())
	}
	return r, nil
}

// toConfigOnly turns the record of an ordinary network into that of a
// configuration-only one.
func (rec *record) toConfigOnly(asked *network.IPAM) error {
	if rec.Internal || rec.Attachable {
		return errs.Forbidden("configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
	}
	rec.ConfigOnly, rec.Driver, rec.MTU = true, driverNull, 0
	if asked == nil {
		return nil
	}
	for _, c := range asked.Config {
		s, err := parseSubnet(c)
		if err != nil {
			return err
		}
		rec.Subnets = append(rec.Subnets, s)
	}
	return nil
}

// usable returns an error for a network that containers can't be connected to.
func (n *object) usable() error {
	if n.ConfigOnly {
		return errs.Forbidden("cannot create endpoint on configuration-only network")
	}
	return nil
}

// configures reports whether another network was created with the configuration
// of n.
func (v *inventory) configures(n *object) bool {
	for _, o := range v.networks {
		if n.ConfigOnly && o.ConfigFrom == n.Name {
			return true
		}
	}
	return false
}
