// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
)

// Inspect returns the nodes and the services on a network, as docker network inspect
// --verbose shows them: what this node has heard of other nodes, and its own.
func (m *Mesh) Inspect(id string) (peers []network.PeerInfo, services map[string]network.ServiceInfo) {
	m.syncing.Lock()
	defer m.syncing.Unlock()
	peers = []network.PeerInfo{}
	if m.gossip != nil && m.gossip.joined[id] {
		for _, p := range m.gossip.db.Peers(id) {
			if p.IP.IsValid() {
				peers = append(peers, network.PeerInfo{Name: p.Name, IP: p.IP})
			}
		}
	}
	slices.SortFunc(peers, func(a, b network.PeerInfo) int { return a.IP.Compare(b.IP) })
	return peers, shownServices(m.members[id])
}

// shownServices are the services of a network by name. Containers that are no tasks are
// those of a service without a name, as in Docker.
func shownServices(members []member) map[string]network.ServiceInfo {
	services := map[string]network.ServiceInfo{}
	for _, m := range members {
		e := m.Endpoint
		addr, err := parseAddr(e.EndpointIP)
		if err != nil || e.Name == "" {
			continue
		}
		s, known := services[e.Service]
		if !known {
			s = network.ServiceInfo{Ports: []string{}, Tasks: []network.Task{}}
			if vip, err := parseAddr(e.VirtualIP); err == nil {
				s.VIP = vip
			}
			for _, p := range e.Ports {
				s.Ports = append(s.Ports, fmt.Sprintf("Target: %d, Publish: %d", p.Target, p.Published))
			}
		}
		s.Tasks = append(s.Tasks, network.Task{Name: e.Name, EndpointIP: addr, Info: map[string]string{"Host IP": m.Peer.TunnelEndpointIP}})
		services[e.Service] = s
	}
	for _, s := range services {
		slices.SortFunc(s.Tasks, func(a, b network.Task) int { return strings.Compare(a.Name, b.Name) })
	}
	return services
}
