// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/stream"
)

// waitersSection has the clients that wait for the container's end.
type waitersSection struct {
	Holds []savedWaiter `json:"holds,omitempty"`
}

type savedWaiter struct {
	Socket    int       `json:"socket"`
	Lease     int       `json:"lease"`
	Condition string    `json:"condition"`
	Last      time.Time `json:"last,omitzero"`
	Later     bool      `json:"later,omitempty"`
	Said      []byte    `json:"said,omitempty"`
	Heard     bool      `json:"heard,omitempty"`
}

func (sec *waitersSection) descriptors() (list []*int) {
	for i := range sec.Holds {
		list = append(list, &sec.Holds[i].Socket, &sec.Holds[i].Lease)
	}
	return list
}

func (sec *waitersSection) save(s *Shim) {
	ws := &s.waiters
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		i := savedWaiter{Socket: w.client.Image().Socket, Lease: descriptor.Number(w.lease), Condition: w.condition, Last: w.lastFinished, Later: w.needsDaemon,
			Said: w.leaseData, Heard: w.leaseRead}
		if i.Socket >= 0 && i.Lease >= 0 {
			sec.Holds = append(sec.Holds, i)
		}
	}
}

func (sec *waitersSection) restore(s *Shim) {
	for _, i := range sec.Holds {
		c, err := stream.Resume(stream.Options{}, stream.Image{Socket: i.Socket, File: -1})
		if err != nil {
			logf("client: %v", err)
			descriptor.CloseAll([]int{i.Lease})
			continue
		}
		w := &waiter{client: c, lease: descriptor.File(i.Lease, "lease"), done: make(chan struct{}), needsDaemon: i.Later,
			condition: i.Condition, lastFinished: i.Last, leaseData: i.Said, leaseRead: i.Heard}
		s.waiters.mu.Lock()
		if s.waiters.all == nil {
			s.waiters.all = map[*waiter]struct{}{}
		}
		s.waiters.all[w] = struct{}{}
		s.waiters.mu.Unlock()
		s.serveWaiter(w)
	}
}
