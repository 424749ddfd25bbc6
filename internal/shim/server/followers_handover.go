// SPDX-License-Identifier: Apache-2.0

package server

import (
	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

// followersSection has the clients that follow the log.
type followersSection struct {
	Follows []savedFollower `json:"follows,omitempty"`
}

type savedFollower struct {
	Socket int          `json:"socket"`
	Asked  proto.Follow `json:"asked"` // with the current offset
	Out    []byte       `json:"out,omitempty"`
	Files  []int        `json:"files"`
	Size   int64        `json:"size"`
	Over   bool         `json:"over,omitempty"`
	Lost   bool         `json:"lost,omitempty"`
	Gap    bool         `json:"gap,omitempty"` // lines are missing after the first file
	// Earlier releases don't know the following ones, and find them out again.
	Mute   bool `json:"mute,omitempty"`   // the client's input is at EOF
	Closed bool `json:"closed,omitempty"` // Out is the last output
}

func (sec *followersSection) descriptors() (list []*int) {
	for i := range sec.Follows {
		list = append(list, &sec.Follows[i].Socket)
		for j := range sec.Follows[i].Files {
			list = append(list, &sec.Follows[i].Files[j])
		}
	}
	return list
}

func (sec *followersSection) save(s *Shim) {
	o := s.out
	o.mu.Lock()
	defer o.mu.Unlock()
	for f := range o.followers {
		if i, ok := f.saved(); ok {
			sec.Follows = append(sec.Follows, i)
		}
	}
}

func (sec *followersSection) restore(s *Shim) {
	for _, i := range sec.Follows {
		i.restore(s)
	}
}

// saved returns what a re-exec hands over of the follower. It reports false if
// there is nothing left to serve.
func (f *follower) saved() (i savedFollower, ok bool) {
	c := f.Image()
	f.mu.Lock()
	defer f.mu.Unlock()
	i = savedFollower{Socket: c.Socket, Asked: f.asked, Out: c.Unwritten(), Mute: c.Mute, Closed: c.Ended,
		Size: f.size, Over: f.over, Lost: f.lost, Gap: f.gap}
	i.Asked.Within = f.enc.Within
	for _, file := range f.files {
		i.Files = append(i.Files, descriptor.Number(file))
	}
	return i, i.Socket >= 0 && len(i.Files) > 0
}

func (i savedFollower) restore(s *Shim) {
	c, err := stream.Resume(followOptions(i.Asked), stream.Image{Socket: i.Socket, Memory: i.Out, File: -1,
		Progress: stream.Progress{Mute: i.Mute, Ended: i.Closed}})
	if err != nil {
		logf("follow log: %v", err)
		descriptor.CloseAll(i.Files)
		return
	}
	f := newFollower(i.Asked, c, s.boot.Log)
	f.size, f.over, f.lost, f.gap = i.Size, i.Over, i.Lost, i.Gap
	for _, fd := range i.Files {
		f.files = append(f.files, descriptor.File(fd, "log"))
	}
	s.out.mu.Lock()
	s.out.trackFollower(f, s.followerFilesMax())
	s.out.mu.Unlock()
	s.serveFollower(f)
}
