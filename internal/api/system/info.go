// SPDX-License-Identifier: Apache-2.0

package system

import (
	"net/http"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	"holdfast/internal/api/wire"
)

// commit is a Commit as it was before API 1.49. Clients that know Expected warn
// if it differs from ID.
type commit struct {
	ID       string
	Expected string
}

// legacyRegistry is the configuration of registries before API 1.47. Its extra
// fields were no longer set by then.
type legacyRegistry struct {
	*registry.ServiceConfig
	AllowNondistributableArtifactsCIDRs     []string
	AllowNondistributableArtifactsHostnames []string
}

// legacyInfo is info before API 1.52. A field here hides the field of the
// embedded type. A nil pointer omits the field.
type legacyInfo struct {
	system.Info
	// Clients before 28 warn if these are false. Newer engines always answer
	// false too, although the bridge filter that the warning names is not
	// needed.
	BridgeNfIptables  *bool `json:",omitempty"` // before 1.50
	BridgeNfIP6tables *bool `json:"BridgeNfIp6tables,omitempty"`
	RegistryConfig    any   `json:",omitempty"`
	ContainerdCommit  any
	RuncCommit        any
	InitCommit        any
	Runtimes          map[string]any
}

func (h *handlers) info(w http.ResponseWriter, r *wire.Request) error {
	info, err := h.backend.Info(r.Context())
	if err != nil {
		return err
	}
	if h.facts.Swarm != nil {
		info.Swarm = h.facts.Swarm.Info(r.Context())
	}
	if r.Version.Before(53) {
		info.NRI = nil
	}
	if !r.Version.Before(52) {
		return wire.WriteJSON(w, http.StatusOK, info)
	}
	if r.Version.Before(50) {
		info.DiscoveredDevices = nil
	}
	if r.Version.Before(49) {
		info.FirewallBackend = nil
	}
	if r.Version.Before(46) {
		info.Containerd = nil
	}
	return wire.WriteJSON(w, http.StatusOK, legacy(info, r.Version))
}

func legacy(info system.Info, v wire.Version) legacyInfo {
	l := legacyInfo{Info: info, ContainerdCommit: info.ContainerdCommit, RuncCommit: info.RuncCommit, InitCommit: info.InitCommit}
	no := false
	if r := info.RegistryConfig; r != nil {
		l.RegistryConfig = r
		if v.Before(47) {
			l.RegistryConfig = legacyRegistry{ServiceConfig: r}
		}
	}
	if v.Before(50) {
		l.BridgeNfIptables, l.BridgeNfIP6tables = &no, &no
	}
	if v.Before(49) {
		l.ContainerdCommit = commit{info.ContainerdCommit.ID, info.ContainerdCommit.ID}
		l.RuncCommit = commit{info.RuncCommit.ID, info.RuncCommit.ID}
		l.InitCommit = commit{info.InitCommit.ID, info.InitCommit.ID}
	}
	l.Runtimes = make(map[string]any, len(info.Runtimes))
	for name, rt := range info.Runtimes {
		if v.Before(44) {
			l.Runtimes[name] = rt.Runtime
		} else {
			l.Runtimes[name] = rt
		}
	}
	return l
}
