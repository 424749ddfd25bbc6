// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
)

// conn is one connection. All output goes through its queue and one goroutine, so
// that a peer that does not read blocks no one else.
type conn struct {
	srv    *server
	frames *proto.Conn
	order  uint64 // among the server's connections
	daemon atomic.Bool
	acks   atomic.Bool   // it sends acknowledgements
	acked  atomic.Uint64 // the last journal entry that it acknowledged
	done   chan struct{} // the connection is closed
	wake   chan struct{} // one token
	room   chan struct{} // one token: a request was answered, or an answer sent

	mu        sync.Mutex
	queue     []outgoing
	sending   *outgoing // taken from the queue and being sent, changed within steps
	events    int       // how many of queue are live events
	calls     int       // unanswered requests
	finishing bool      // to be closed once these are answered and the queue is written
	closing   bool      // to be closed once the queue is written
	closed    bool      // no more is sent
}

// outgoing is a message in the queue. Once it is sent, or can't be, its descriptor
// (a copy) is closed and its function then is called.
type outgoing struct {
	*proto.Message
	fd   int    // -1 for none
	then func() // nil for none
	live bool   // an event that postEvent queued
}

func plain(m *proto.Message) outgoing { return outgoing{Message: m, fd: -1} }

func (m outgoing) release() {
	if m.fd >= 0 {
		unix.Close(m.fd)
	}
	if m.then != nil {
		m.then()
	}
}

func newConn(s *server, frames *proto.Conn) *conn {
	return &conn{srv: s, frames: frames, done: make(chan struct{}), wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// ack records that the daemon has handled the journal up to entry seq.
func (c *conn) ack(seq uint64) {
	c.acks.Store(true)
	for {
		before := c.acked.Load()
		if seq <= before || c.acked.CompareAndSwap(before, seq) {
			break
		}
	}
	c.srv.mu.Lock()
	close(c.srv.acked)
	c.srv.acked = make(chan struct{})
	c.srv.mu.Unlock()
}

func (c *conn) post(m outgoing) {
	c.mu.Lock()
	over := c.closed
	if !over {
		c.queue = append(c.queue, m)
	}
	c.mu.Unlock()
	if over {
		m.release()
		return
	}
	c.signal()
}

// postEvent queues a live event. A subscriber that lags too far behind is
// disconnected.
func (c *conn) postEvent(e *proto.Event) {
	c.mu.Lock()
	if c.events++; c.events > eventsQueued {
		c.closing = true // the deadline fails the blocked write; the queue is discarded
		c.frames.File().SetDeadline(time.Unix(1, 0))
		c.signalRoom()
	} else {
		m := plain(&proto.Message{Event: e})
		m.live = true
		c.queue = append(c.queue, m)
	}
	c.mu.Unlock()
	c.signal()
}

func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// closeNow ends the connection and discards its queue.
func (c *conn) closeNow() {
	c.mu.Lock()
	c.closing = true
	c.frames.File().SetDeadline(time.Unix(1, 0))
	c.mu.Unlock()
	c.signalRoom()
	c.signal()
}

func (c *conn) signalRoom() {
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// awaitRoom waits while too many requests or answers of this peer are pending. Only
// the reader calls it.
func (c *conn) awaitRoom() {
	for {
		c.mu.Lock()
		full := (c.calls >= callsMax || len(c.queue) >= answersMax+eventsQueued) && !c.closing && !c.closed
		c.mu.Unlock()
		if !full {
			return
		}
		<-c.room
	}
}

// write is the connection's only writer. The connection ends with it.
func (c *conn) write() {
	defer c.srv.collect()
	defer c.srv.shim.verbs.resumeLent(c)
	defer close(c.done)
	defer c.close()
	if err := c.frames.Finish(); err != nil { // the rest of a frame begun before a re-exec
		return
	}
	for {
		m, closing := c.next()
		switch {
		case m != nil:
			var fds []int
			if m.fd >= 0 {
				fds = []int{m.fd}
			}
			err := c.frames.Send(m.Message, fds...)
			m.release()
			c.signalRoom()
			if err != nil {
				return
			}
		case closing:
			return
		default:
			<-c.wake
		}
	}
}

// next takes the first message of the queue. closing means that no further message
// will come.
func (c *conn) next() (m *outgoing, closing bool) {
	motion.RLock()
	defer motion.RUnlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames.Forget()
	c.sending = nil
	if len(c.queue) > 0 {
		first := c.queue[0]
		c.queue = c.queue[1:]
		if first.live {
			c.events--
		}
		c.sending = &first
		return c.sending, false
	}
	c.queue = nil
	return nil, c.closing || c.finishing && c.calls == 0
}

// close is called once, by write.
func (c *conn) close() {
	c.srv.mu.Lock()
	delete(c.srv.conns, c)
	last := len(c.srv.conns) == 0
	c.srv.mu.Unlock()
	if last {
		go c.srv.shim.life.abandon()
	}
	c.mu.Lock()
	c.closed = true
	c.signalRoom()
	unsent := c.queue
	c.queue = nil
	c.mu.Unlock()
	c.srv.shim.rec.unsubscribe(c) // after closed is set, which subscribe checks
	for _, m := range unsent {
		m.release()
	}
	c.frames.Close()
}

// closeAfterCalls ends the connection after its requests are answered and its queue
// is written.
func (c *conn) closeAfterCalls() {
	c.frames.File().SetWriteDeadline(time.Now().Add(flushTime))
	c.mu.Lock()
	c.finishing = true
	c.mu.Unlock()
	c.signal()
}

// closeAfterQueue makes write close the connection once the queue is empty.
func (c *conn) closeAfterQueue() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.signal()
}

func (c *conn) read() {
	defer c.frames.DropFDs()
	gate := c.srv.shim.gate
	for {
		c.awaitRoom()
		// A request is inside the gate from here until it is answered.
		gate.enter()
		more, err := c.takeRequest()
		if !more && err == nil {
			gate.leave()
			if err = c.frames.Fill(); err == nil {
				continue
			}
			gate.enter()
		}
		if err != nil {
			if errors.Is(err, proto.ErrFrame) {
				logf("connection: %v", err)
			}
			if err != errFinishing {
				c.closeAfterQueue()
			}
			gate.leave()
			return
		}
	}
}

// errFinishing ends the reader of a connection that takes no more requests but
// still has to answer some.
var errFinishing = errors.New("the connection is finishing")

// takeRequest handles the next request if one has been received completely.
func (c *conn) takeRequest() (there bool, err error) {
	m := &proto.Message{}
	if there, err = c.frames.Take(m); !there || err != nil {
		return false, err
	}
	fds, err := c.frames.TakeFDs(m.FDs)
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	if c.finishing {
		c.mu.Unlock()
		descriptor.CloseAll(fds)
		return false, errFinishing
	}
	c.calls++
	c.mu.Unlock()
	go func() {
		defer c.srv.shim.gate.leave()
		if c.handle(m, fds) {
			c.answered()
		}
	}()
	return true, nil
}

// answered notes that a request was answered.
func (c *conn) answered() {
	c.mu.Lock()
	c.calls--
	c.mu.Unlock()
	c.signalRoom()
	c.signal()
}

func (c *conn) answer(id uint64, result any, err error) { c.answerThen(id, result, err, nil) }

// answerThen answers a request and calls then once the answer is sent, or can't be.
func (c *conn) answerThen(id uint64, result any, err error, then func()) {
	reply := &proto.Message{ID: id}
	if err != nil {
		if !errors.As(err, &reply.Error) {
			reply.Error = &proto.Error{Kind: proto.KindInternal, Message: err.Error()}
		}
	} else if result != nil {
		if reply.Result, err = proto.Marshal(result); err != nil {
			reply.Error = &proto.Error{Kind: proto.KindInternal, Message: err.Error()}
		}
	}
	c.post(outgoing{Message: reply, fd: -1, then: then})
}
