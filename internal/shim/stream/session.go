// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"sync"
	"time"
)

// Session joins one client to the input and output of a process, or to output that
// its owner makes, such as the lines of a log.
//
// The owner queues output with Put, Write or Append, and waits for room before it
// makes more: that is the client's backpressure. A goroutine writes the queue at the
// client's pace; it exists only while there is something to write. Join reads the
// client. Nothing is read or written before Begin or Join.
//
// The life of a session is the table of State.Next.
type Session struct {
	sock *Socket
	o    Options
	in   input
	done chan struct{} // closed when Join has returned

	sending []byte // taken from the queue and not yet written; changed within steps

	mu      sync.Mutex // locked after Motion
	state   State
	queue   queue
	begun   bool
	writing bool // the writer runs
	linger  limits
	changed chan struct{} // closed at every change; nil while nobody waits
}

// limits bound what is read and discarded from a client after EOF was sent: EndTime
// and EndBytes, unless a test lowers them.
type limits struct {
	time  time.Duration
	bytes int64 // counted down
}

// Options are what a session is made for.
type Options struct {
	// Terminal: the process has a terminal. Only then do Keys detach the client;
	// without a terminal every byte is data.
	Terminal bool
	Keys     []byte
	// Raw: output has no frame headers (see Header).
	Raw bool
	// Bound is how many bytes of output may be queued before the owner must wait.
	Bound int
}

// New takes over a client's socket. Pending is what the client had sent before.
func New(sock *Socket, o Options, pending []byte) *Session {
	s := newSession(sock, o)
	if s.in.take(pending) {
		s.on(Keys)
	}
	return s
}

func newSession(sock *Socket, o Options) *Session {
	s := &Session{sock: sock, o: o, done: make(chan struct{}), linger: limits{EndTime, EndBytes}}
	s.in.patience = Patience
	if o.Terminal {
		s.in.escape.keys = o.Keys
	}
	return s
}

// on applies an event. The caller then performs the actions.
func (s *Session) on(e Event) Action {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.step(e)
}

// step is on with the lock held. It does what concerns the queue.
func (s *Session) step(e Event) (do Action) {
	s.state, do = s.state.Next(e)
	if do&Discard != 0 {
		s.queue.discard()
	}
	if do&Drain != 0 {
		s.queue.closed = true
		s.wakeWriter()
	}
	s.notify()
	return do
}

// perform does the actions that concern the peers.
func (s *Session) perform(do Action, to Process) {
	if do&CloseInput != 0 && to != nil {
		to.CloseInput()
	}
	if do&SendEOF != 0 {
		s.sock.sendEOF(s.linger.time)
	}
	if do&Close != 0 {
		s.sock.Close()
	}
}

// State returns the present state.
func (s *Session) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Done is closed when Join has returned: the connection is closed.
func (s *Session) Done() <-chan struct{} { return s.done }

// Begin lets output flow.
func (s *Session) Begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun {
		return
	}
	s.begun = true
	if !s.queue.empty() || s.queue.closed || len(s.sending) > 0 {
		s.wakeWriter()
	}
}

// Join copies the client's input to the process until the connection is closed; a
// nil process discards it. When the client is detached by its keys, Join calls
// record, which calls Recorded and returns when the daemons know of it.
func (s *Session) Join(to Process, record func()) {
	defer close(s.done)
	s.Begin()
	var do Action
	if st := s.State(); st == HalfClosed || st == HalfDraining {
		do = CloseInput // after a re-exec, which may have come before it
	}
	for {
		s.in.pass(s.sock, to)
		s.perform(do, to)
		switch s.State() {
		case Closed:
			s.sock.Close()
			return
		case Detaching, Detached:
			if record != nil {
				record()
			}
			s.on(Recorded)
			do = s.on(OutputEnd)
		case HalfClosed, HalfDraining:
			s.sock.waitGone()
			do = s.on(ClientGone)
		default:
			do = s.receive()
		}
	}
}

// receive reads once from the client.
func (s *Session) receive() (do Action) {
	err := readPooled(s.sock, func(p []byte, eof bool) { do = s.came(p, eof) }, func() { s.in.room = nil })
	if err != nil {
		// The socket was closed, or EndTime has passed. Each event has an effect only
		// where it can occur.
		do = s.on(Limit) | s.on(ClientEOF)
	}
	return do
}

// came accounts for bytes of the client, within a step.
func (s *Session) came(p []byte, eof bool) Action {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.state {
	case Joined, Deaf, Draining:
		if s.in.take(p) {
			return s.step(Keys)
		}
		if eof {
			s.in.end()
		}
	case Lingering:
		if s.linger.bytes -= int64(len(p)); s.linger.bytes < 0 {
			return s.step(Limit)
		}
	}
	if eof {
		return s.step(ClientEOF)
	}
	return Nothing
}

// Left returns a channel that is closed when the client has gone. Over TCP a closed
// connection looks half-closed until something is written to it, so there the end of
// the client's input counts. It is for a client to which nothing may be written for a
// long time.
func (s *Session) Left() <-chan struct{} {
	if s.sock.local() {
		return s.done
	}
	left := make(chan struct{})
	go func() {
		defer close(left)
		for {
			s.mu.Lock()
			reads, changed := s.state == Joined || s.state == Deaf, s.change()
			s.mu.Unlock()
			if !reads {
				return
			}
			<-changed
		}
	}()
	return left
}

// Recorded is called when the detach is recorded. A re-exec must not come between.
func (s *Session) Recorded() { s.on(Recorded) }

// EndOutput ends the output: the client gets what is queued, and then EOF.
func (s *Session) EndOutput() { s.on(OutputEnd) }

// End is Write and EndOutput in one step.
func (s *Session) End(last []byte) {
	Motion.RLock()
	defer Motion.RUnlock()
	s.Write(last)
	s.EndOutput()
}

// Abort closes the connection at once.
func (s *Session) Abort() { s.perform(s.on(Abort), nil) }

// Release closes this copy of the socket, when another process continues with the
// connection. It may be called only before Join.
func (s *Session) Release() { s.sock.Release() }

// Put queues output of a stream: 1 is stdout, 2 is stderr. It never blocks. Output
// after the end is discarded, and so is all output without a session (nil).
func (s *Session) Put(source byte, p []byte) {
	if s == nil {
		return
	}
	s.Append(func(to []byte) []byte {
		if !s.o.Raw {
			h := Header(source, len(p))
			to = append(to, h[:]...)
		}
		return append(to, p...)
	})
}

// Write queues bytes as they are.
func (s *Session) Write(p []byte) {
	s.Append(func(to []byte) []byte { return append(to, p...) })
}

// Append lets fn append output to the queue. After the end of the output fn is
// called too, and the result is discarded.
func (s *Session) Append(fn func(to []byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue.closed {
		fn(nil)
		return
	}
	to := s.queue.tail()
	if *to = fn(*to); len(*to) == 0 {
		*to = nil
		return
	}
	s.wakeWriter()
}

// Copy reads once from fd, which must not block, and queues the bytes as output of
// source, in one step. Without a session (nil) they are discarded. At EOF it returns
// 0 and no error.
func (s *Session) Copy(fd int, source byte) (n int, err error) {
	Motion.RLock()
	defer Motion.RUnlock()
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	if n, err = read(uintptr(fd), buf[:]); n > 0 {
		s.Put(source, buf[:n])
	}
	return n, err
}

// Room returns nil if the owner may queue more, and otherwise a channel that is
// closed when that may have changed. A client that takes no more output exerts no
// backpressure.
func (s *Session) Room() <-chan struct{} {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.queue.full(s.o.Bound) {
		return nil
	}
	return s.change()
}

// AwaitRoom waits for room. It reports false after the end of the output.
func (s *Session) AwaitRoom() (open bool) {
	for room := s.Room(); room != nil; room = s.Room() {
		<-room
	}
	return s != nil && s.open()
}

func (s *Session) open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.queue.closed
}

// Flush waits until all output is written or discarded. It reports false after the
// end of the output.
func (s *Session) Flush() (open bool) {
	for {
		s.mu.Lock()
		if !s.writing && s.queue.empty() {
			defer s.mu.Unlock()
			return !s.queue.closed
		}
		changed := s.change()
		s.mu.Unlock()
		<-changed
	}
}

// change returns a channel that is closed at the next change. It is called with the
// lock held.
func (s *Session) change() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

func (s *Session) notify() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// wakeWriter starts the writer if it does not run. It is called with the lock held.
func (s *Session) wakeWriter() {
	if s.begun && !s.writing {
		s.writing = true
		go s.write()
	}
}

// write writes the queue, at the client's pace. At its end it sends EOF.
func (s *Session) write() {
	for {
		more, do := s.next()
		s.perform(do, nil)
		if !more {
			return
		}
		spent := s.sending
		if WriteSteps(s.sock.f, &s.sending) != nil {
			Motion.RLock()
			s.sending = nil
			Motion.RUnlock()
			s.perform(s.on(WriteFailed), nil)
		}
		giveBack(spent[:0])
	}
}

// next takes the next bytes from the queue, in a step. It reports false, and the
// writer then ends, if there are none.
func (s *Session) next() (more bool, do Action) {
	Motion.RLock()
	defer Motion.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sending) > 0 {
		return true, Nothing
	}
	if !s.queue.empty() {
		s.sending = s.queue.next()
		s.notify()
		return true, Nothing
	}
	s.queue.mem = nil // an idle client holds no memory
	s.writing = false
	if s.queue.closed {
		do = s.step(Written)
	}
	s.notify()
	return false, do
}
