// SPDX-License-Identifier: Apache-2.0

package server

import (
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

// clientsSection has the attached clients.
type clientsSection struct {
	Clients []savedClient `json:"clients,omitempty"`
}

type savedClient struct {
	Socket  int          `json:"socket"`
	Asked   proto.Attach `json:"asked"`
	Live    bool         `json:"live"` // attached to the current run
	Sending []byte       `json:"sending,omitempty"`
	Typed   []byte       `json:"typed,omitempty"`
	Keys    int          `json:"keys,omitempty"` // how many of the detach keys were typed so far
	Mute    bool         `json:"mute,omitempty"`
	Gone    bool         `json:"gone,omitempty"` // detached by its keys
	Told    bool         `json:"told,omitempty"` // the detach event is in the journal
	Memory  []byte       `json:"memory,omitempty"`
	Later   []byte       `json:"later,omitempty"` // comes after the content of File
	File    int          `json:"file"`            // backlog file of an earlier release, or -1
	Read    int64        `json:"read,omitempty"`
	Written int64        `json:"written,omitempty"`
	Closed  bool         `json:"closed,omitempty"`
}

func (sec *clientsSection) descriptors() (list []*int) {
	for n := range sec.Clients {
		list = append(list, &sec.Clients[n].Socket, &sec.Clients[n].File)
	}
	return list
}

func (sec *clientsSection) save(s *Shim) {
	o := s.out
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.all {
		_, live := o.clients[c]
		i := c.saved(live)
		if i.Socket < 0 {
			continue
		}
		sec.Clients = append(sec.Clients, i)
	}
}

// restore attaches the clients before the container's output is read: otherwise
// they would miss bytes.
func (sec *clientsSection) restore(s *Shim) {
	for _, i := range sec.Clients {
		i.restore(s)
	}
}

// saved returns what a re-exec hands over of the client.
func (c *client) saved(live bool) savedClient {
	i := c.Image()
	asked := c.asked
	asked.DetachKeys = i.DetachKeys
	return savedClient{Socket: i.Socket, Asked: asked, Live: live, Sending: i.Sending, Typed: i.Typed, Keys: i.Keys,
		Mute: i.Mute, Gone: i.Left, Told: i.Recorded, Memory: i.Memory, Later: i.Later,
		File: i.File, Read: i.Read, Written: i.Written, Closed: i.Ended}
}

func (i savedClient) restore(s *Shim) {
	session, err := stream.Resume(attachOptions(i.Asked, s.boot.Terminal), stream.Image{Socket: i.Socket, Sending: i.Sending, Memory: i.Memory, Later: i.Later,
		File: i.File, Read: i.Read, Written: i.Written, Typed: i.Typed, Keys: i.Keys,
		Progress: stream.Progress{Mute: i.Mute, Left: i.Gone, Recorded: i.Told, Ended: i.Closed}})
	if err != nil {
		logf("client: %v", err)
		return
	}
	c := &client{session, i.Asked}
	in := s.out.rejoin(c, i.Live)
	s.server.trackClient(c.Done())
	go s.joinClient(c, in)
}
