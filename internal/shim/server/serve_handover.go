// SPDX-License-Identifier: Apache-2.0

package server

import (
	"maps"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
)

// connsSection has the connections and the socket that new ones come from.
type connsSection struct {
	Listener int         `json:"listener"`
	Conns    []savedConn `json:"conns,omitempty"`

	listener *listener     // a reference, so that the garbage collector does not close the file
	index    map[*conn]int // in Conns, while the state is saved
	restored []*conn       // as Conns; nil for one that could not be restored
}

type savedConn struct {
	Socket     int              `json:"socket"`
	Daemon     bool             `json:"daemon,omitempty"`
	Lender     bool             `json:"lender,omitempty"` // the container is paused for as long as this connection lives
	Subscribed bool             `json:"subscribed,omitempty"`
	Hears      bool             `json:"hears,omitempty"`
	Heard      uint64           `json:"heard,omitempty"`
	Closing    bool             `json:"closing,omitempty"`
	Carried    proto.Carried    `json:"carried"`
	Queue      []*proto.Message `json:"queue,omitempty"`
	Files      []int            `json:"files,omitempty"` // the descriptor sent with each message of Queue, or -1
}

func (sec *connsSection) descriptors() []*int {
	list := []*int{&sec.Listener}
	for i := range sec.Conns {
		c := &sec.Conns[i]
		list = append(list, &c.Socket)
		for _, each := range [][]int{c.Carried.FDs, c.Files} {
			for j := range each {
				list = append(list, &each[j])
			}
		}
	}
	return list
}

func (sec *connsSection) save(s *Shim) {
	sec.Listener = descriptor.Number(s.server.listener.f)
	s.rec.mu.Lock()
	subscribed := maps.Clone(s.rec.subs)
	s.rec.mu.Unlock()
	sec.index = map[*conn]int{}
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	for c := range s.server.conns {
		c.mu.Lock()
		_, subscribes := subscribed[c]
		i := savedConn{Socket: descriptor.Number(c.frames.File()), Daemon: c.daemon.Load(), Lender: s.verbs.lender.Load() == c, Subscribed: subscribes, Closing: c.closing,
			Hears: c.acks.Load(), Heard: c.acked.Load()}
		carried, begun := c.frames.Carry()
		i.Carried = carried
		queue := c.queue
		if c.sending != nil && !begun {
			queue = append([]outgoing{*c.sending}, queue...)
		}
		for _, m := range queue {
			i.Queue, i.Files = append(i.Queue, m.Message), append(i.Files, m.fd)
		}
		c.mu.Unlock()
		if i.Socket < 0 {
			continue
		}
		sec.index[c] = len(sec.Conns)
		sec.Conns = append(sec.Conns, i)
	}
}

// restore makes the connections, which take no part until start: requests that are
// still to be answered must be counted before.
func (sec *connsSection) restore(s *Shim) {
	sec.restored = make([]*conn, len(sec.Conns))
	for n, i := range sec.Conns {
		frames, err := proto.NewConn(i.Socket)
		if err != nil {
			logf("connection: %v", err)
			unix.Close(i.Socket)
			continue
		}
		frames.Restore(i.Carried)
		c := newConn(s.server, frames)
		c.closing = i.Closing
		c.daemon.Store(i.Daemon)
		c.acks.Store(i.Hears)
		c.acked.Store(i.Heard)
		if i.Lender {
			s.verbs.lender.Store(c)
		}
		for j, m := range i.Queue {
			fd := -1
			if j < len(i.Files) {
				fd = i.Files[j]
			}
			c.queue = append(c.queue, outgoing{Message: m, fd: fd})
		}
		if i.Subscribed {
			s.rec.subs[c] = struct{}{}
		}
		sec.restored[n] = c
	}
}

// start serves the connections and accepts new ones.
func (sec *connsSection) start(s *Shim) {
	for _, c := range sec.restored {
		if c != nil {
			s.server.start(c)
		}
	}
	go s.server.acceptAll()
}

// position returns where a connection is in the section, or -1.
func (sec *connsSection) position(c *conn) int {
	if n, ok := sec.index[c]; ok {
		return n
	}
	return -1
}

// at returns the restored connection of a position, or nil.
func (sec *connsSection) at(n int) *conn {
	if n < 0 || n >= len(sec.restored) {
		return nil
	}
	return sec.restored[n]
}
