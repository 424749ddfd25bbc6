// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/api/wire"
)

// requestFromOlder gives a create request of an older API version the meaning
// that it had in that version: newer fields are ignored, and changed defaults
// are made explicit. The version history of the API (docs/CHANGELOG.md of
// github.com/moby/moby/api) lists the changes.
func requestFromOlder(req *container.CreateRequest, v wire.Version) error {
	hc := req.HostConfig
	if v.Before(56) {
		hc.Umask = nil
	}
	if v.Before(44) {
		if names := slices.Sorted(maps.Keys(req.NetworkingConfig.EndpointsConfig)); len(names) > 1 {
			return wire.Invalid("Container cannot be created with multiple network endpoints: %s", strings.Join(names, ", "))
		}
		if req.Healthcheck != nil {
			req.Healthcheck.StartInterval = 0
		}
	}
	if v.Before(48) {
		for _, ep := range req.NetworkingConfig.EndpointsConfig {
			if ep != nil {
				ep.GwPriority = 0
			}
		}
	}
	if v.Before(43) {
		hc.Annotations = nil
	}
	if v.Before(42) {
		hc.ConsoleSize = [2]uint{}
	}
	if v.Before(41) && hc.CgroupnsMode == container.CgroupnsModeEmpty {
		hc.CgroupnsMode = container.CgroupnsModeHost
	}
	if v.Before(40) {
		if hc.IpcMode == "" {
			hc.IpcMode = container.IPCModeShareable
		}
		hc.DeviceRequests = nil
	}
	if v.Before(25) {
		hc.AutoRemove = false
	}
	for i := range hc.Mounts {
		if err := mountFromOlder(&hc.Mounts[i], v); err != nil {
			return err
		}
	}
	return nil
}

func mountFromOlder(m *mount.Mount, v wire.Version) error {
	if v.Before(48) && m.Type == mount.TypeImage {
		return wire.Invalid("mounts of type \"image\" need API version 1.48 or newer")
	}
	if v.Before(46) && m.TmpfsOptions != nil {
		m.TmpfsOptions.Options = nil
	}
	if v.Before(45) && m.VolumeOptions != nil && m.VolumeOptions.Subpath != "" {
		return wire.Invalid("VolumeOptions.Subpath needs API version 1.45 or newer")
	}
	if v.Before(44) && m.Type == mount.TypeBind && m.ReadOnly {
		// Read-only mounts were not recursive yet.
		if m.BindOptions == nil {
			m.BindOptions = &mount.BindOptions{}
		}
		m.BindOptions.ReadOnlyNonRecursive, m.BindOptions.ReadOnlyForceRecursive = true, false
	}
	if v.Before(42) {
		// Options for another mount type were not refused yet.
		if m.Type != mount.TypeBind {
			m.BindOptions = nil
		}
		if m.Type != mount.TypeVolume {
			m.VolumeOptions = nil
		}
		if m.Type != mount.TypeTmpfs {
			m.TmpfsOptions = nil
		}
		if m.BindOptions != nil {
			m.BindOptions.CreateMountpoint = false
		}
	}
	if v.Before(40) && m.BindOptions != nil {
		m.BindOptions.NonRecursive = false
	}
	return nil
}

// updateFromOlder is requestFromOlder for update.
func updateFromOlder(u *container.UpdateConfig, v wire.Version) {
	if v.Before(55) {
		u.BlkioWeightDevice = nil
		u.BlkioDeviceReadBps, u.BlkioDeviceWriteBps = nil, nil
		u.BlkioDeviceReadIOps, u.BlkioDeviceWriteIOps = nil, nil
	}
	if v.Before(40) {
		u.PidsLimit = nil
	}
	if v.Before(28) {
		u.NanoCPUs = 0
	}
}

const macWarning = "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."

// containerMAC moves the container-wide MAC address, which was a field of the
// request until API 1.52, to the endpoint of the main network. Before 1.44
// endpoints had no MAC address of their own.
func containerMAC(req *container.CreateRequest, body []byte, v wire.Version) (warning string, err error) {
	if !v.Before(52) {
		return "", nil
	}
	endpoints := req.NetworkingConfig.EndpointsConfig
	if v.Before(44) {
		for _, ep := range endpoints {
			if ep != nil {
				ep.MacAddress = nil
			}
		}
	}
	var old struct{ MacAddress network.HardwareAddr }
	if err := wire.DecodeBytes(body, &old); err != nil {
		return "", err
	}
	if len(old.MacAddress) == 0 {
		return "", nil
	}
	mode := req.HostConfig.NetworkMode
	if mode.IsNone() || mode.IsHost() || mode.IsContainer() {
		return "", wire.Invalid("conflicting options: mac-address and the network mode")
	}
	ep, err := mainEndpoint(req.NetworkingConfig, string(mode))
	if err != nil {
		return "", err
	}
	if len(ep.MacAddress) > 0 && ep.MacAddress.String() != old.MacAddress.String() {
		return "", wire.Invalid("the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
	}
	ep.MacAddress = old.MacAddress
	if v.Before(44) {
		return "", nil
	}
	return macWarning, nil
}

// mainEndpoint finds the endpoint of the network that the mode names. If there
// are no endpoints it creates one.
func mainEndpoint(nc *network.NetworkingConfig, mode string) (*network.EndpointSettings, error) {
	if mode == "" {
		mode = network.NetworkDefault
	}
	names := []string{mode}
	if mode == network.NetworkDefault {
		names = append(names, network.NetworkBridge)
	} else if mode == network.NetworkBridge {
		names = append(names, network.NetworkDefault)
	}
	if nc.EndpointsConfig == nil {
		nc.EndpointsConfig = map[string]*network.EndpointSettings{}
	}
	for _, name := range names {
		if ep, ok := nc.EndpointsConfig[name]; ok {
			if ep == nil {
				ep = &network.EndpointSettings{}
				nc.EndpointsConfig[name] = ep
			}
			return ep, nil
		}
	}
	switch len(nc.EndpointsConfig) {
	case 0:
		ep := &network.EndpointSettings{}
		nc.EndpointsConfig[mode] = ep
		return ep, nil
	case 1:
		// The mode may be the ID of the network, and the endpoint's key its
		// name.
		for name, ep := range nc.EndpointsConfig {
			if ep == nil {
				ep = &network.EndpointSettings{}
				nc.EndpointsConfig[name] = ep
			}
			return ep, nil
		}
	}
	return nil, wire.Invalid("unable to migrate container-wide MAC address to a specific network: HostConfig.NetworkMode (%s) must match a network in NetworkingConfig.EndpointsConfig", mode)
}

// legacyContainer is inspect before API 1.52. A field here hides the field of
// the embedded type.
type legacyContainer struct {
	container.InspectResponse
	GraphDriver     any
	Config          any
	NetworkSettings any
}

type legacyConfig struct {
	*container.Config
	MacAddress string `json:",omitempty"`
	OnBuild    []string
}

// legacyNetworkSettings are the fields from before a container could have
// several networks, filled from the endpoint on the default bridge.
type legacyNetworkSettings struct {
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []json.RawMessage
	SecondaryIPv6Addresses []json.RawMessage
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
	*container.NetworkSettings
}

// inspected converts a container to the form of API version v. mac is the
// requested address on its main network, which only clients before 1.52
// receive.
func inspected(c container.InspectResponse, mac network.HardwareAddr, v wire.Version) any {
	if v.Before(48) {
		c.ImageManifestDescriptor = nil
	}
	if !v.Before(52) {
		return c
	}
	old := legacyContainer{InspectResponse: c}
	old.InspectResponse.Storage = nil
	if c.GraphDriver != nil {
		old.GraphDriver = c.GraphDriver
	} else {
		// Older clients read the field without checking whether it exists.
		old.GraphDriver = map[string]any{"Name": c.Driver, "Data": nil}
	}
	ns := c.NetworkSettings
	if ns == nil {
		ns = &container.NetworkSettings{}
	}
	settings := legacyNetworkSettings{NetworkSettings: ns}
	if ep := ns.Networks[network.NetworkBridge]; ep != nil {
		settings.EndpointID = ep.EndpointID
		settings.MacAddress = ep.MacAddress.String()
		settings.IPPrefixLen, settings.GlobalIPv6PrefixLen = ep.IPPrefixLen, ep.GlobalIPv6PrefixLen
		if ep.Gateway.IsValid() {
			settings.Gateway = ep.Gateway.String()
		}
		if ep.IPAddress.IsValid() {
			settings.IPAddress = ep.IPAddress.String()
		}
		if ep.IPv6Gateway.IsValid() {
			settings.IPv6Gateway = ep.IPv6Gateway.String()
		}
		if ep.GlobalIPv6Address.IsValid() {
			settings.GlobalIPv6Address = ep.GlobalIPv6Address.String()
		}
	}
	if v.Before(45) {
		settings.NetworkSettings = withOwnNames(ns, c)
	}
	old.NetworkSettings = settings
	if c.Config != nil {
		old.Config = legacyConfig{Config: c.Config, MacAddress: mac.String(), OnBuild: c.Config.OnBuild}
	}
	return old
}

// withOwnNames adds a container's short ID and hostname to its aliases on
// networks other than the default ones. Until API 1.45 they were part of the
// aliases.
func withOwnNames(ns *container.NetworkSettings, c container.InspectResponse) *container.NetworkSettings {
	var own []string
	if len(c.ID) >= 12 {
		own = append(own, c.ID[:12])
	}
	if c.Config != nil && c.Config.Hostname != "" && !slices.Contains(own, c.Config.Hostname) {
		own = append(own, c.Config.Hostname)
	}
	out := *ns
	out.Networks = make(map[string]*network.EndpointSettings, len(ns.Networks))
	for name, ep := range ns.Networks {
		if ep != nil && name != network.NetworkBridge && name != network.NetworkHost && name != network.NetworkNone {
			ep = ep.Copy()
			for _, alias := range own {
				if !slices.Contains(ep.Aliases, alias) {
					ep.Aliases = append(ep.Aliases, alias)
				}
			}
		}
		out.Networks[name] = ep
	}
	return &out
}

// summaries converts the list to the form of API version v.
func summaries(all []container.Summary, v wire.Version) []container.Summary {
	out := make([]container.Summary, len(all))
	for i, c := range all {
		if v.Before(52) {
			c.Health = nil
		}
		if v.Before(48) {
			c.ImageManifestDescriptor = nil
		}
		if v.Before(46) {
			c.HostConfig.Annotations = nil
		}
		out[i] = c
	}
	return out
}
