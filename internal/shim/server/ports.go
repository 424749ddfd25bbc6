// SPDX-License-Identifier: Apache-2.0

package server

import (
	"holdfast/internal/shim/ports"
	"holdfast/internal/shim/proto"
)

// setPorts handles Ports.
func (s *Shim) setPorts(m proto.Ports, added []int) (proto.PortsReply, error) {
	s.portsMu.Lock()
	defer s.portsMu.Unlock()
	reply, changed, err := s.ports.Update(m, added)
	if !changed {
		return reply, err
	}
	s.mu.Lock()
	s.boot.Teardown.Netlink = m.Netlink
	s.mu.Unlock()
	if err != nil {
		return reply, err
	}
	return reply, s.saveBootstrap()
}

// portsSection has the published ports.
type portsSection struct{ ports.Section }

func (sec *portsSection) descriptors() []*int { return sec.Descriptors() }

func (sec *portsSection) save(s *Shim) { sec.Save(s.ports) }

func (sec *portsSection) restore(s *Shim) { s.ports = sec.Restore(s.boot.Ports) }
