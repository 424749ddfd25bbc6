// SPDX-License-Identifier: Apache-2.0

package stream

import "os"

// Image is what a re-exec hands over of a session. Output comes in the order
// Sending, Memory, content of File, Later.
type Image struct {
	Socket int // -1 if the connection is closed: there is no session any more

	Sending []byte
	Memory  []byte
	// A backlog file of an earlier release, or -1: its bytes from Read to Written.
	File          int
	Read, Written int64
	Later         []byte

	Typed []byte // read from the client and not yet written to the process
	Keys  int    // how many of the detach keys are held back

	// DetachKeys are the keys that detach the client: none without a terminal. Resume
	// takes them from the options.
	DetachKeys []byte

	Progress
}

// Progress is a state as a re-exec hands it over.
type Progress struct {
	Mute     bool // the client's input is at EOF
	Left     bool // detached by the keys
	Recorded bool // the detach is recorded
	Ended    bool // no more output comes
}

// progress is how the states that Reexec leads to are handed over.
var progress = map[State]Progress{
	Joined:       {},
	HalfClosed:   {Mute: true},
	Detaching:    {Left: true},
	Draining:     {Ended: true},
	HalfDraining: {Mute: true, Ended: true},
	Leaving:      {Left: true, Recorded: true, Ended: true},
}

// state is the state to continue with. Every combination has one: earlier releases
// handed over more of them.
func (p Progress) state() State {
	switch {
	case p.Recorded:
		return Leaving
	case p.Left:
		return Detaching
	case p.Ended && p.Mute:
		return HalfDraining
	case p.Ended:
		return Draining
	case p.Mute:
		return HalfClosed
	default:
		return Joined
	}
}

// Image returns what the next binary continues with. The caller holds Motion for
// writing.
func (s *Session) Image() Image {
	i := Image{Socket: number(s.sock.f), File: -1, Sending: s.sending, Typed: s.in.typed, Keys: s.in.escape.pos, DetachKeys: s.in.escape.keys}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := &s.queue
	i.Memory, i.Later, i.Read, i.Written = q.mem, q.afterFile, q.rd, q.wr
	if q.file != nil {
		i.File = number(q.file)
	}
	next, _ := s.state.Next(Reexec)
	if next == Closed {
		i.Socket = -1
	}
	i.Progress = progress[next]
	return i
}

// Unwritten returns all output in one piece, for owners without a backlog file.
func (i *Image) Unwritten() []byte { return append(append([]byte(nil), i.Sending...), i.Memory...) }

// Resume continues a session in the next binary. It takes over the descriptors; if
// it fails it has closed them.
func Resume(o Options, i Image) (*Session, error) {
	var file *os.File
	if i.File >= 0 {
		file = os.NewFile(uintptr(i.File), "backlog")
	}
	sock, err := NewSocket(i.Socket)
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, err
	}
	s := newSession(sock, o)
	s.in.typed, s.in.escape.pos = i.Typed, i.Keys
	if !o.Terminal { // earlier releases honoured detach keys without a terminal
		s.in.typed = append(s.in.typed, o.Keys[:min(max(i.Keys, 0), len(o.Keys))]...)
		s.in.escape.pos = 0
	}
	s.state = i.state()
	s.sending = i.Sending
	q := &s.queue
	q.mem, q.afterFile, q.rd, q.wr, q.file = i.Memory, i.Later, i.Read, i.Written, file
	q.closed = s.state.Ending()
	if q.file != nil && q.rd >= q.wr { // all of it was delivered; earlier releases kept the file for reuse
		q.file.Close()
		q.file = nil
	}
	if q.file == nil {
		q.mem, q.afterFile = append(q.mem, q.afterFile...), nil
	}
	return s, nil
}

// number returns a file's descriptor, or -1 if it is closed.
func number(f *os.File) int {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1
	}
	fd := -1
	raw.Control(func(n uintptr) { fd = int(n) })
	return fd
}
