// SPDX-License-Identifier: Apache-2.0

package server

import (
	"slices"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

// execsSection has the exec sessions.
type execsSection struct {
	Consoles uint64      `json:"consoles"`
	Execs    []savedExec `json:"execs,omitempty"`
	Left     []int       `json:"left,omitempty"` // output streams whose exec session has ended
}

type savedExec struct {
	Create  proto.ExecCreate `json:"create"`
	State   proto.ExecState  `json:"state"`
	Rows    uint             `json:"rows,omitempty"`
	Cols    uint             `json:"cols,omitempty"`
	Reframe bool             `json:"reframe,omitempty"`
	Active  bool             `json:"active,omitempty"` // the fields below are set
	Process savedProcess     `json:"process"`
	Socket  int              `json:"socket"`
	Stdin   int              `json:"stdin"`
	Stdout  int              `json:"stdout"`
	Stderr  int              `json:"stderr"`
	Master  int              `json:"master"`
	Typed   []byte           `json:"typed,omitempty"`
	Keys    int              `json:"keys,omitempty"`
	Mute    bool             `json:"mute,omitempty"`
	Gone    bool             `json:"gone,omitempty"` // detached by its keys, which is not recorded yet
	Told    bool             `json:"told,omitempty"` // the detach is in the journal; earlier releases don't know it
	Rest    []byte           `json:"rest,omitempty"` // unwritten output
	Held    [][]byte         `json:"held,omitempty"` // more of it, from earlier releases
}

func (sec *execsSection) descriptors() (list []*int) {
	for i := range sec.Execs {
		x := &sec.Execs[i]
		list = append(list, &x.Process.Pidfd, &x.Socket, &x.Stdin, &x.Stdout, &x.Stderr, &x.Master)
	}
	for i := range sec.Left {
		list = append(list, &sec.Left[i])
	}
	return list
}

func (sec *execsSection) save(s *Shim) {
	sec.Consoles = s.consoles.Load()
	s.execs.mu.Lock()
	defer s.execs.mu.Unlock()
	for _, x := range s.execs.list {
		i := savedExec{Create: x.create, State: x.state, Rows: x.rows, Cols: x.cols, Reframe: x.reframe, Socket: -1, Stdin: -1, Stdout: -1, Stderr: -1, Master: -1}
		i.Process.Pidfd = -1
		if x.io != nil {
			i.Active, i.Process = true, x.proc.save()
			if x.create.Tty {
				i.Master = descriptor.Number(x.io.stdout)
			} else {
				i.Stdin, i.Stdout, i.Stderr = descriptor.Number(x.io.stdin), descriptor.Number(x.io.stdout), descriptor.Number(x.io.stderr)
			}
			if x.client != nil {
				i.setClient(x.client.Image())
			}
		}
		sec.Execs = append(sec.Execs, i)
	}
	for _, f := range s.execs.orphans {
		sec.Left = append(sec.Left, descriptor.Number(f))
	}
}

func (sec *execsSection) restore(s *Shim) {
	s.consoles.Store(sec.Consoles)
	if len(sec.Execs) > 0 {
		s.reaper.listenSIGCHLD()
	}
	for _, i := range sec.Execs {
		i.restore(s)
	}
	s.execs.mu.Lock()
	defer s.execs.mu.Unlock()
	for _, fd := range sec.Left {
		if fd >= 0 {
			s.execs.discard(&execReader{f: descriptor.File(fd, "pipe")})
		}
	}
}

func (i savedExec) restore(s *Shim) {
	x := newSession(i.Create, i.State)
	x.rows, x.cols, x.reframe = i.Rows, i.Cols, i.Reframe
	s.execs.list = append(s.execs.list, x)
	if !i.Active {
		if i.State.Started {
			close(x.ended)
		}
		return
	}
	proc, err := i.Process.restore(s.reaper)
	if err != nil {
		logf("exec %s: %v", i.Create.Exec, err)
		proc = &process{pid: i.Process.Pid, exited: make(chan struct{}), status: unknownStatus, lost: true, ended: true}
		close(proc.exited)
	}
	x.proc = proc
	x.io = &execIO{child: noStdio, stdin: descriptor.File(i.Stdin, "pipe"), stdout: descriptor.File(i.Stdout, "pipe"), stderr: descriptor.File(i.Stderr, "pipe")}
	if i.Create.Tty {
		x.master = descriptor.File(i.Master, "terminal")
		x.io.stdin, x.io.stdout = x.master, x.master
	}
	x.io.begin(i.Create)
	if i.Socket >= 0 {
		if x.client, err = stream.Resume(x.options(), i.client()); err != nil {
			logf("exec %s: client: %v", i.Create.Exec, err)
		}
	}
	x.makeReaders()
	s.superviseExec(x)
}

// setClient notes what a re-exec hands over of a session's client.
func (i *savedExec) setClient(c stream.Image) {
	i.Socket, i.Rest, i.Typed, i.Keys, i.Mute = c.Socket, c.Unwritten(), c.Typed, c.Keys, c.Mute
	i.Gone, i.Told = c.Left && !c.Recorded, c.Recorded
	if c.Recorded {
		// Earlier releases must not pass on what a detached client sends. A terminal's
		// input survives the end of the client's.
		i.Mute = true
	}
}

// client returns what the previous binary handed over of a session's client.
func (i *savedExec) client() stream.Image {
	return stream.Image{Socket: i.Socket, Sending: slices.Concat(append([][]byte{i.Rest}, i.Held...)...), File: -1, Typed: i.Typed, Keys: i.Keys,
		Progress: stream.Progress{Mute: i.Mute, Left: i.Gone || i.Told, Recorded: i.Told}}
}
