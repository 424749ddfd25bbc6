// SPDX-License-Identifier: Apache-2.0

package network

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Settings returns a running container's networking in the API's form.
func (m *Manager) Settings(s Sandbox) *container.NetworkSettings {
	out := &container.NetworkSettings{
		SandboxID: s.ID, SandboxKey: s.Netns,
		Ports: network.PortMap{}, Networks: map[string]*network.EndpointSettings{},
	}
	if s.Shared {
		// A container in a shared namespace has no endpoints of its own.
		out.SandboxID, out.SandboxKey = "", ""
		return out
	}
	bridged := false
	for _, e := range s.Endpoints {
		bridged = bridged || e.Bridge != "" || e.Parent != nil
		if e.Network == GatewayNetwork && s.onOverlay() {
			continue // as in Docker: it is no network that the user has named
		}
		es := e.Settings.Copy()
		if es == nil {
			es = &network.EndpointSettings{}
		}
		es.NetworkID, es.EndpointID = e.NetworkID, e.ID
		es.MacAddress = hardwareAddr(e.MAC)
		if a := e.IPv4; a.Address.IsValid() {
			es.IPAddress, es.IPPrefixLen, es.Gateway = a.Address.Addr(), a.Address.Bits(), a.Gateway
		}
		if a := e.IPv6; a.Address.IsValid() {
			es.GlobalIPv6Address, es.GlobalIPv6PrefixLen, es.IPv6Gateway = a.Address.Addr(), a.Address.Bits(), a.Gateway
		}
		out.Networks[e.Network] = es
	}
	if !bridged {
		return out
	}
	for _, p := range s.Exposed {
		out.Ports[p] = nil
	}
	for _, pm := range s.Ports {
		p, ok := network.PortFrom(pm.ContainerPort, network.IPProtocol(pm.Proto))
		if !ok {
			continue
		}
		b := network.PortBinding{HostIP: pm.HostIP}
		if pm.HostPort != 0 {
			b.HostPort = strconv.Itoa(int(pm.HostPort))
		}
		out.Ports[p] = append(out.Ports[p], b)
	}
	return out
}

// Idle returns the networking of a container that does not run: the networks that
// it asks for, without operational data.
func (reg *registry) Idle(r Request) *container.NetworkSettings {
	out := &container.NetworkSettings{Ports: network.PortMap{}, Networks: map[string]*network.EndpointSettings{}}
	mode := r.Mode
	if mode == "" || mode == network.NetworkDefault {
		mode = network.NetworkBridge
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n, err := reg.inv.firstNetwork(mode, r)
	if err == nil && n != nil {
		es := reg.inv.settingsFor(r, n)
		if es == nil {
			es = &network.EndpointSettings{}
		}
		es.NetworkID = n.ID
		out.Networks[n.Name] = es
	} else if err != nil && !r.Only && !strings.HasPrefix(mode, "container:") {
		// A network that does not exist is still listed under its name.
		out.Networks[mode] = &network.EndpointSettings{}
	}
	onOverlay := func(name string) bool {
		other, err := reg.inv.lookup(canonical(name))
		return err == nil && other.Overlay != nil
	}
	for name, es := range r.Endpoints {
		other, err := reg.inv.lookup(canonical(name))
		if err == nil && other == n {
			continue
		}
		if name == GatewayNetwork && slices.ContainsFunc(slices.Collect(maps.Keys(r.Endpoints)), onOverlay) {
			continue // as in Settings
		}
		es = es.Copy()
		if es == nil {
			es = &network.EndpointSettings{}
		}
		if err == nil {
			es.NetworkID, name = other.ID, other.Name
		}
		out.Networks[name] = es
	}
	return out
}
