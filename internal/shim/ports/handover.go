// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/log"
	"holdfast/internal/shim/proto"
)

// Section is the ports' section of the state that a re-exec hands over. Its fields
// are keys of the state's JSON object. Descriptors keep their numbers.
type Section struct {
	Ports []int         `json:"ports,omitempty"`
	Flows []savedFlow   `json:"flows,omitempty"`
	Peers [][]savedPeer `json:"peers,omitempty"` // of each UDP port
}

type savedFlow struct {
	Client int       `json:"client"`
	Server int       `json:"server"`
	Target string    `json:"target"`
	Up     savedHalf `json:"up"`
	Down   savedHalf `json:"down"`
}

type savedHalf struct {
	Left  []byte `json:"left,omitempty"`
	Ended bool   `json:"ended,omitempty"`
	Over  bool   `json:"over,omitempty"`
}

type savedPeer struct {
	From   string `json:"from"`
	Socket int    `json:"socket"`
}

// Descriptors returns pointers to all descriptors of the section.
func (i *Section) Descriptors() (list []*int) {
	for n := range i.Ports {
		list = append(list, &i.Ports[n])
	}
	for n := range i.Flows {
		list = append(list, &i.Flows[n].Client, &i.Flows[n].Server)
	}
	for _, peers := range i.Peers {
		for n := range peers {
			list = append(list, &peers[n].Socket)
		}
	}
	return list
}

// Save fills the section. The caller holds stream.Motion for writing, and sees to it
// that no Update is in progress.
func (i *Section) Save(p *Set) {
	i.Ports = p.fds
	p.flows.Lock()
	defer p.flows.Unlock()
	for w := range p.forwards {
		flow := savedFlow{Client: descriptor.Number(w.client), Server: descriptor.Number(w.server), Target: w.target.String(), Up: w.up.save(), Down: w.down.save()}
		if flow.Client >= 0 {
			i.Flows = append(i.Flows, flow)
		}
	}
	for _, u := range p.udp {
		var peers []savedPeer
		u.mu.Lock()
		for from, f := range u.peers {
			peers = append(peers, savedPeer{From: from.String(), Socket: descriptor.Number(f)})
		}
		u.mu.Unlock()
		i.Peers = append(i.Peers, peers)
	}
}

// Restore returns the set that continues from the section. What arrives meanwhile
// waits: a datagram of a restored peer must leave by that peer's socket.
func (i *Section) Restore(ports []proto.Port) *Set {
	p := newSet(ports, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.serve(ports, i.Ports); err != nil {
		log.Printf("ports: %v", err)
	}
	for _, flow := range i.Flows {
		w := &forward{client: descriptor.File(flow.Client, "client"), server: descriptor.File(flow.Server, "container"), up: flow.Up.restore(), down: flow.Down.restore()}
		w.target, _ = netip.ParseAddrPort(flow.Target)
		p.budget.Add(-2)
		p.trackForward(w, true)
		go p.forwardTCP(w)
	}
	for n, peers := range i.Peers {
		for _, peer := range peers {
			from, err := netip.ParseAddrPort(peer.From)
			if n >= len(p.udp) || err != nil || peer.Socket < 0 {
				unix.Close(peer.Socket)
				continue
			}
			p.udp[n].restorePeer(from, peer.Socket)
		}
	}
	return p
}

func (h *half) save() savedHalf { return savedHalf{Left: h.left, Ended: h.ended, Over: h.done} }

func (i savedHalf) restore() half { return half{left: i.Left, ended: i.Ended, done: i.Over} }
