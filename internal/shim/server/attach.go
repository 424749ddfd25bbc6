// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

// backlogSize is how many bytes a client may be behind before it exerts
// backpressure on the container.
const backlogSize = 1 << 20

// client is a client attached to the container.
type client struct {
	*stream.Session
	asked proto.Attach // without Pending
}

// attachOptions are those of a client attached to the container.
func attachOptions(a proto.Attach, terminal bool) stream.Options {
	return stream.Options{Terminal: terminal, Keys: a.DetachKeys, Raw: a.Raw, Bound: backlogSize}
}

// attach adds a client. From now on it gets every byte of output, up to the end of
// the run.
func (o *output) attach(c *client) (*stdin, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return nil, errors.New("container is not running")
	}
	o.clients[c], o.all[c] = struct{}{}, struct{}{}
	return o.in, nil
}

// rejoin re-attaches a client after a re-exec. live: it is attached to the current
// run.
func (o *output) rejoin(c *client, live bool) *stdin {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all[c] = struct{}{}
	if live {
		o.clients[c] = struct{}{}
		return o.in
	}
	gone := newStdin()
	gone.end()
	return gone
}

func (o *output) detach(c *client) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.clients, c)
	delete(o.all, c)
}

// wants reports whether the client asked for a stream.
func (c *client) wants(src format.Source) bool {
	return src == format.Stdout && c.asked.Stdout || src == format.Stderr && c.asked.Stderr
}

// send queues output. It never blocks; see backpressure.
func (c *client) send(src format.Source, p []byte) {
	if c.wants(src) {
		c.Put(byte(src), p)
	}
}

// endStreams ends the streams of clients once their queued output is delivered.
func endStreams(clients []*client) {
	for _, c := range clients {
		c.EndOutput()
	}
}

// backpressure returns nil while all clients of a stream keep up. Otherwise the
// stream is not read, so that the container blocks on the full pipe, and the
// returned channel is closed when a client has read or gone. A client that has gone
// or was detached exerts none.
func (o *output) backpressure(src format.Source) <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.clients {
		if c.wants(src) {
			if room := c.Room(); room != nil {
				return room
			}
		}
	}
	return nil
}

// attachedInput is the container's input as one client uses it.
type attachedInput struct {
	*stdin
	once bool // the end of the client's input closes the container's
}

func (a attachedInput) Pipe() *stream.Pipe { return a.await() }

func (a attachedInput) CloseInput() {
	if a.once {
		a.closeInput()
	}
}

// attach handles Attach. See callAttach about begin.
func (s *Shim) attach(a proto.Attach, sock *stream.Socket) (begin func(), err error) {
	if err := s.server.checkClientLimit(); err != nil {
		s.server.endClient(sock, 0, stream.Frame(byte(format.Stderr), []byte("holdfast: "+err.Error()+"\r\n"), a.Raw))
		return nil, err
	}
	pending := a.Pending
	a.Pending = nil
	c := &client{stream.New(sock, attachOptions(a, s.boot.Terminal), pending), a}
	in, err := s.out.attach(c)
	if err != nil {
		s.server.endClient(sock, s.rec.snapshot().Seq, nil)
		return nil, conflict("%v", err)
	}
	s.server.trackClient(c.Done())
	return func() { go s.joinClient(c, in) }, nil
}

// joinClient serves a client until its connection is closed.
func (s *Shim) joinClient(c *client, in *stdin) {
	var to stream.Process
	if c.asked.Stdin {
		to = attachedInput{in, s.boot.StdinOnce}
	}
	c.Join(to, func() { s.recordDetach(c.Session, note{action: proto.ActionDetach}) })
	s.out.detach(c)
}

// recordDetach records that a client was detached by its keys. It returns when the
// daemons know of it.
func (s *Shim) recordDetach(c *stream.Session, n note) {
	s.gate.enter()
	st := s.rec.change(func(*proto.State) {}, n)
	c.Recorded()
	s.gate.leave()
	s.server.awaitAcks(st.Seq)
}
