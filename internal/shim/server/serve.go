package server

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

const (
	// eventsQueued is how many events a subscriber may be behind before its
	// connection is closed. It comes again and reads the journal.
	eventsQueued = 1024
	// flushTime is what a connection gets at the end to take its last events.
	flushTime = 5 * time.Second
)

func protoError(kind, format string, args ...any) error {
	return &proto.Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) error {
	return protoError(proto.KindInvalid, format, args...)
}

func conflict(format string, args ...any) error {
	return protoError(proto.KindConflict, format, args...)
}

func notFound(format string, args ...any) error {
	return protoError(proto.KindNotFound, format, args...)
}

// server has the connections of daemons, and of whoever else may open the
// socket.
type server struct {
	shim     *Shim
	release  string
	listener *listener
	closed   chan struct{} // when it no longer listens
	sealed   chan struct{} // when the state is final

	progress atomic.Uint64 // writes that some client took

	mu      sync.Mutex
	conns   map[*conn]struct{}
	clients map[<-chan struct{}]time.Duration // not yet served to the end, and their patience
}

// conn is one connection. Everything that goes out passes through its queue
// and one goroutine, so that a peer that doesn't read holds up nobody.
type conn struct {
	srv    *server
	frames *proto.Conn
	daemon atomic.Bool
	done   chan struct{} // the connection is closed
	wake   chan struct{} // one token

	mu        sync.Mutex
	queue     []outgoing
	sending   *outgoing // taken from the queue and not yet sent, changed within steps
	events    int       // how many of queue are live events
	calls     int       // requests not yet answered
	finishing bool      // ends once these are answered and the queue is written
	closing   bool      // ends once the queue is written
	over      bool      // nothing is sent any more
}

// outgoing is a message in the queue, with what is to be done once it is sent
// or can't be: the descriptor that travels with it, a copy, is closed, and then
// is called.
type outgoing struct {
	*proto.Message
	fd   int    // -1 for none
	then func() // nil for none
}

func plain(m *proto.Message) outgoing { return outgoing{Message: m, fd: -1} }

func (m outgoing) settle() {
	if m.fd >= 0 {
		unix.Close(m.fd)
	}
	if m.then != nil {
		m.then()
	}
}

func (s *server) add(fd int) error {
	frames, err := proto.NewConn(fd)
	if err != nil {
		unix.Close(fd)
		return err
	}
	s.serve(frames)
	return nil
}

func (s *server) serve(frames *proto.Conn) {
	s.begin(&conn{srv: s, frames: frames, done: make(chan struct{}), wake: make(chan struct{}, 1)})
}

func (s *server) begin(c *conn) {
	c.frames.Guard = moving{}
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	go c.write()
	go c.read()
}

func (s *server) acceptAll() {
	for {
		fd, err := s.listener.accept()
		if err != nil {
			select {
			case <-s.closed:
				return
			default:
			}
			// Out of descriptors, most likely: those who wait stay in the
			// queue, and the next end of a connection makes room.
			logf("accept: %v", err)
			s.waitForRoom()
			continue
		}
		if err := s.add(fd); err != nil {
			logf("connection: %v", err)
		}
	}
}

// waitForRoom waits until some connection has ended, or a second.
func (s *server) waitForRoom() {
	s.mu.Lock()
	var any <-chan struct{}
	for c := range s.conns {
		any = c.done
		break
	}
	s.mu.Unlock()
	select {
	case <-any:
	case <-time.After(time.Second):
	}
}

// daemonConnected reports whether someone is there to take over what comes
// after the end.
func (s *server) daemonConnected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.daemon.Load() {
			return true
		}
	}
	return false
}

// stopListening takes the socket away: whoever comes now finds the files.
func (s *server) stopListening() {
	unix.Unlinkat(s.shim.dirfd, proto.SocketFile, 0)
	close(s.closed)
	s.listener.close()
}

// linger makes the end wait for a client, whose done is closed when it was
// served.
func (s *server) linger(done <-chan struct{}) { s.lingerFor(done, lingerTime) }

// lingerFor is linger with a patience: how long the client may take for its
// next read.
func (s *server) lingerFor(done <-chan struct{}, patience time.Duration) {
	s.mu.Lock()
	s.clients[done] = patience
	s.mu.Unlock()
	go func() {
		<-done
		s.mu.Lock()
		delete(s.clients, done)
		s.mu.Unlock()
	}()
}

// finish lets everyone have what is theirs and closes the connections.
func (s *server) finish() {
	close(s.sealed)
	s.mu.Lock()
	conns := slices.Collect(maps.Keys(s.conns))
	clients := maps.Clone(s.clients)
	s.mu.Unlock()
	s.shim.holds.end()
	for _, c := range conns {
		c.finish()
	}
	for _, c := range conns {
		<-c.done
	}
	var left sync.WaitGroup
	for done, patience := range clients {
		left.Go(func() { s.served(done, patience) })
	}
	left.Wait()
}

// served waits for a client as long as clients take something.
func (s *server) served(done <-chan struct{}, patience time.Duration) {
	for {
		before := s.progress.Load()
		timer := time.NewTimer(patience)
		select {
		case <-done:
			timer.Stop()
			return
		case <-timer.C:
			if s.progress.Load() == before {
				return
			}
		}
	}
}

func (c *conn) post(m outgoing) {
	c.mu.Lock()
	over := c.over
	if !over {
		c.queue = append(c.queue, m)
	}
	c.mu.Unlock()
	if over {
		m.settle()
		return
	}
	c.signal()
}

// postEvent queues a live event. A subscriber that is too far behind is cut
// off.
func (c *conn) postEvent(e *proto.Event) {
	c.mu.Lock()
	if c.events++; c.events > eventsQueued {
		c.closing = true // the write that waits fails, and what is queued with it
		c.frames.File().SetDeadline(time.Unix(1, 0))
	} else {
		c.queue = append(c.queue, plain(&proto.Message{Event: e}))
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

// write is the connection's only writer. When it ends the connection does.
func (c *conn) write() {
	defer c.srv.shim.giveBack(c)
	defer close(c.done)
	defer c.close()
	if err := c.frames.Finish(); err != nil { // begun before the shim became another binary
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
			m.settle()
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

// next takes the first of the queue, or says that nothing will come.
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
		c.sending = &first
		return c.sending, false
	}
	c.queue, c.events = nil, 0
	return nil, c.closing || c.finishing && c.calls == 0
}

// close is called once, by write.
func (c *conn) close() {
	c.srv.shim.rec.unsubscribe(c)
	c.srv.mu.Lock()
	delete(c.srv.conns, c)
	c.srv.mu.Unlock()
	c.mu.Lock()
	c.over = true
	unsent := c.queue
	c.queue = nil
	c.mu.Unlock()
	for _, m := range unsent {
		m.settle()
	}
	c.frames.Close()
}

// finish ends the connection after its calls are answered and its queue is
// written.
func (c *conn) finish() {
	c.frames.File().SetWriteDeadline(time.Now().Add(flushTime))
	c.mu.Lock()
	c.finishing = true
	c.mu.Unlock()
	c.signal()
}

// end lets write close the connection once the queue is empty.
func (c *conn) end() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.signal()
}

func (c *conn) read() {
	defer c.frames.DropFDs()
	gate := c.srv.shim.gate
	for {
		// A request is within the gate from when it is taken until it is answered.
		gate.enter()
		more, err := c.take()
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
				c.end()
			}
			gate.leave()
			return
		}
	}
}

// errFinishing: nothing is asked any more, but answers are still due.
var errFinishing = errors.New("the connection is finishing")

// take handles the next request if it is there.
func (c *conn) take() (there bool, err error) {
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
		closeAll(fds)
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

// answered ends a call.
func (c *conn) answered() {
	c.mu.Lock()
	c.calls--
	c.mu.Unlock()
	c.signal()
}

// handle answers one request, or reports false when somebody will do so later.
// Descriptors that the method doesn't take are closed.
func (c *conn) handle(m *proto.Message, fds []int) bool {
	s := c.srv.shim
	later, err := false, error(nil)
	switch m.Method {
	case proto.MethodStop:
		var p proto.Stop
		if err = params(m, &p); err == nil {
			err = s.stop(c, m.ID, p)
		}
		later = true
	case proto.MethodUpgrade:
		var p proto.Upgrade
		if err = params(m, &p); err == nil {
			err = s.upgrade(c, m.ID, p)
		}
		later = true
	}
	if later {
		closeAll(fds)
		if err != nil {
			c.answer(m.ID, nil, err)
		}
		return err != nil
	}
	if m.Method == proto.MethodSubscribe {
		var p proto.Subscribe
		if err := params(m, &p); err == nil {
			s.rec.subscribe(c, &proto.Message{ID: m.ID}, p.After)
			closeAll(fds)
			return true
		}
	}
	if m.Method == proto.MethodTerminal {
		closeAll(fds)
		fd, err := s.terminal()
		if err == nil {
			c.post(outgoing{Message: &proto.Message{ID: m.ID, FDs: 1}, fd: fd})
			return true
		}
		c.answer(m.ID, nil, err)
		return true
	}
	if m.Method == proto.MethodAttach {
		begin, err := c.attach(m, &fds)
		closeAll(fds)
		c.answerThen(m.ID, nil, err, begin)
		return true
	}
	result, err := c.call(m, &fds)
	closeAll(fds)
	c.answer(m.ID, result, err)
	return true
}

func (c *conn) answer(id uint64, result any, err error) { c.answerThen(id, result, err, nil) }

// answerThen is answer, with what is to follow it.
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

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func params(m *proto.Message, v any) error {
	if len(m.Params) == 0 {
		return nil
	}
	if err := proto.Unmarshal(m.Params, v); err != nil {
		return invalid("%s: %v", m.Method, err)
	}
	return nil
}

func (s *Shim) hello() *proto.HelloReply {
	return &proto.HelloReply{Version: proto.Version, Release: s.server.release, Pid: os.Getpid(), State: s.rec.snapshot(), Names: s.servesNames()}
}

// takeSocket makes the request's first descriptor a client's connection.
func (s *server) takeSocket(fds *[]int) (*socket, error) {
	fd := (*fds)[0]
	*fds = (*fds)[1:]
	return newSocket(fd, &s.progress)
}

// takePair makes the request's two descriptors a client's connection and a
// file.
func (c *conn) takePair(m *proto.Message, fds *[]int) (*socket, int, error) {
	if len(*fds) != 2 {
		return nil, -1, invalid("%s: want 2 descriptors, %d came", m.Method, len(*fds))
	}
	sock, err := c.srv.takeSocket(fds)
	if err != nil {
		return nil, -1, err
	}
	other := (*fds)[0]
	*fds = nil
	return sock, other, nil
}

// attach joins a client. begin, to be called after the answer, lets its bytes
// flow: a daemon that reads no answer gives the same client to the next shim,
// which must find nothing of it done.
func (c *conn) attach(m *proto.Message, fds *[]int) (begin func(), err error) {
	var p proto.Attach
	if err := params(m, &p); err != nil {
		return nil, err
	}
	if len(*fds) != 1 {
		return nil, invalid("%s: want 1 descriptor, %d came", m.Method, len(*fds))
	}
	sock, err := c.srv.takeSocket(fds)
	if err != nil {
		return nil, err
	}
	return c.srv.shim.attach(p, sock)
}

func (c *conn) call(m *proto.Message, fds *[]int) (any, error) {
	s := c.srv.shim
	switch m.Method {
	case proto.MethodHello:
		var p proto.Hello
		if err := params(m, &p); err != nil {
			return nil, err
		}
		c.daemon.Store(p.Daemon != "")
		return s.hello(), nil
	case proto.MethodState:
		st := s.rec.snapshot()
		return &st, nil
	case proto.MethodStart:
		st, err := s.start()
		return &st, err
	case proto.MethodKill:
		var p proto.Kill
		if err := params(m, &p); err != nil {
			return nil, err
		}
		return nil, s.kill(p)
	case proto.MethodPause:
		var p proto.Pause
		if len(m.Params) > 0 {
			if err := params(m, &p); err != nil {
				return nil, err
			}
		}
		var lender *conn
		if p.Lent {
			lender = c
		}
		st, err := s.pause(lender)
		return &st, err
	case proto.MethodResume:
		st, err := s.resume()
		return &st, err
	case proto.MethodUpdate:
		var p proto.Update
		if err := params(m, &p); err != nil {
			return nil, err
		}
		return nil, s.update(p)
	case proto.MethodResize, proto.MethodExecResize:
		var p proto.Resize
		if err := params(m, &p); err != nil {
			return nil, err
		}
		if m.Method == proto.MethodExecResize && p.Exec == "" {
			return nil, invalid("%s: exec is missing", m.Method)
		}
		return nil, s.resize(p)
	case proto.MethodNames:
		var p proto.Names
		if err := params(m, &p); err != nil {
			return nil, err
		}
		if len(*fds) != 2 || p.View == "" {
			return nil, invalid("%s: want the view's path and 2 descriptors, %d came", m.Method, len(*fds))
		}
		udp, tcp := (*fds)[0], (*fds)[1]
		*fds = nil
		s.serveNames(p.View, udp, tcp)
		return nil, nil
	case proto.MethodPorts:
		var p proto.Ports
		if err := params(m, &p); err != nil {
			return nil, err
		}
		if len(*fds) != len(p.New) {
			return nil, invalid("%s: want %d descriptors, %d came", m.Method, len(p.New), len(*fds))
		}
		added := *fds
		*fds = nil
		reply, err := s.setPorts(p, added)
		return &reply, err
	case proto.MethodHold:
		var p proto.Hold
		if err := params(m, &p); err != nil {
			return nil, err
		}
		sock, lease, err := c.takePair(m, fds)
		if err != nil {
			return nil, err
		}
		return nil, s.hold(p, sock, lease)
	case proto.MethodFollow:
		var p proto.Follow
		if err := params(m, &p); err != nil {
			return nil, err
		}
		sock, log, err := c.takePair(m, fds)
		if err != nil {
			return nil, err
		}
		return nil, s.follow(p, sock, log)
	case proto.MethodExecCreate:
		var p proto.ExecCreate
		if err := params(m, &p); err != nil {
			return nil, err
		}
		return nil, s.execCreate(p)
	case proto.MethodExecStart:
		var p proto.ExecStart
		if err := params(m, &p); err != nil {
			return nil, err
		}
		var sock *socket
		if len(*fds) > 0 {
			var err error
			if sock, err = c.srv.takeSocket(fds); err != nil {
				return nil, err
			}
		}
		st, err := s.execStart(p, sock)
		return &st, err
	case proto.MethodShutdown:
		return nil, s.shutdown()
	}
	return nil, protoError(proto.KindUnimplemented, "this shim (protocol %d) knows no method %q", proto.Version, m.Method)
}

// validName keeps names from the outside usable as file names.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 128 || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}
