package engine

import (
	"net/netip"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/engine/oci"
)

// kept are those of the daemon's options that bear on each start of a
// container and that its HostConfig has no place for, as they were when it was
// created: a container keeps what it was created with. They are stored with its
// request.
type kept struct {
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

// keep is what a container that is created now keeps.
func (c *Config) keep() *kept {
	return &kept{
		DNS: c.DNS, DNSOptions: c.DNSOptions, DNSSearch: c.DNSSearch, HostGatewayIPs: c.HostGatewayIPs,
		Ulimits: c.Defaults.Ulimits, Init: c.Defaults.Init, InitPath: c.Defaults.InitPath,
		NoNewPrivileges: c.Defaults.NoNewPrivileges, SeccompProfile: c.Defaults.SeccompProfile,
	}
}

// of is what a container of this request has. Releases that kept nothing left
// it to the daemon of the day.
func (c *Config) of(req request) kept {
	if req.Kept != nil {
		return *req.Kept
	}
	return *c.keep()
}

// defaults are d with what was kept in place of the daemon's.
func (k kept) defaults(d oci.Defaults) oci.Defaults {
	d.Ulimits, d.Init, d.InitPath = k.Ulimits, k.Init, k.InitPath
	d.NoNewPrivileges, d.SeccompProfile = k.NoNewPrivileges, k.SeccompProfile
	return d
}
