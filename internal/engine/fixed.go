// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/engine/oci"
)

// fixedOptions are the daemon's options that affect each start of a container and
// have no field in its HostConfig, with their values at the time of the
// container's creation. They are stored with its request, so that a later change
// of the daemon's configuration does not change the container.
type fixedOptions struct {
	DNS            []netip.Addr            `json:"dns,omitempty"`
	DNSOptions     []string                `json:"dnsOptions,omitempty"`
	DNSSearch      []string                `json:"dnsSearch,omitempty"`
	HostGatewayIPs []netip.Addr            `json:"hostGatewayIPs,omitempty"`
	Ulimits        map[string]*moby.Ulimit `json:"ulimits,omitempty"`
	Init           bool                    `json:"init,omitempty"`
	InitPath       string                  `json:"initPath,omitempty"`

	NoNewPrivileges bool `json:"noNewPrivileges,omitempty"`
	// SeccompProfile is the profile's text, not its path.
	SeccompProfile string `json:"seccompProfile,omitempty"`
}

// fixOptions returns the fixed options for a container that is created now.
func (c *Config) fixOptions() *fixedOptions {
	return &fixedOptions{
		DNS: c.DNS, DNSOptions: c.DNSOptions, DNSSearch: c.DNSSearch, HostGatewayIPs: c.HostGatewayIPs,
		Ulimits: c.Defaults.Ulimits, Init: c.Defaults.Init, InitPath: c.Defaults.InitPath,
		NoNewPrivileges: c.Defaults.NoNewPrivileges, SeccompProfile: c.Defaults.SeccompProfile,
	}
}

// fixedOf returns the fixed options of a request. Early releases stored none: their
// containers get the daemon's present options.
func (c *Config) fixedOf(req request) fixedOptions {
	if req.Fixed != nil {
		return *req.Fixed
	}
	return *c.fixOptions()
}

// defaults returns d with the fixed options in place of the daemon's present ones.
func (o fixedOptions) defaults(d oci.Defaults) oci.Defaults {
	d.Ulimits, d.Init, d.InitPath = o.Ulimits, o.Init, o.InitPath
	d.NoNewPrivileges, d.SeccompProfile = o.NoNewPrivileges, o.SeccompProfile
	return d
}
