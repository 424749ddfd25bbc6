// SPDX-License-Identifier: Apache-2.0

package server

import (
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

const (
	// eventsQueued is how many events a subscriber may lag behind before its
	// connection is closed. It then reconnects and gets the missed entries from the
	// journal.
	eventsQueued = 1024
	// clientsMax is how many clients a shim serves at once: attached ones, exec
	// sessions, log followers and waiters. One takes some 20 kB and a few
	// descriptors.
	clientsMax = 1024
	// collectAfter is after how many connections, clients, execs and health checks their
	// memory is returned to the host. Each leaves some 12 kB, so a shim that waited for
	// the first collection of Go would grow to more than three times its size.
	collectAfter = 32
	// connsMax is how many connections of daemons and others may be open.
	connsMax = 256
	// Backpressure: beyond callsMax unanswered requests or answersMax unsent
	// answers, a connection is not read, and further requests stay in the socket.
	callsMax   = 256
	answersMax = 1024
	// fdsMax is how many descriptors may arrive before the frames that they belong
	// to.
	fdsMax = 16 << 10
	// flushTime bounds how long a connection may take at the end to receive its last
	// events.
	flushTime = 5 * time.Second
	// ackTime bounds how long the end of a client's stream waits for a daemon that
	// lives but does not acknowledge the entry.
	ackTime = 10 * time.Second
)

func invalid(format string, args ...any) error {
	return proto.Errorf(proto.KindInvalid, format, args...)
}

func conflict(format string, args ...any) error {
	return proto.Errorf(proto.KindConflict, format, args...)
}

func notFound(format string, args ...any) error {
	return proto.Errorf(proto.KindNotFound, format, args...)
}

// server has all connections to the socket, most of them of daemons.
type server struct {
	shim     *Shim
	release  string
	listener *listener
	closed   chan struct{} // closed when it no longer listens
	sealed   chan struct{} // closed when the state is final

	mu        sync.Mutex
	connCount uint64 // since the start
	conns     map[*conn]struct{}
	clients   map[<-chan struct{}]struct{} // not yet served to the end; keys are closed then
	litter    int                          // what ended since the last collection
	acked     chan struct{}                // closed at every acknowledgement, then made anew
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
	s.start(newConn(s, frames))
}

func (s *server) start(c *conn) {
	c.frames.Guard = moving{}
	c.frames.MaxFDs = descriptor.Limit(fdsMax)
	s.mu.Lock()
	s.connCount++
	c.order = s.connCount
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
			// Most likely there are no free descriptors. Peers wait in the backlog,
			// and the next connection to end frees one.
			logf("accept: %v", err)
			s.awaitConnEnd()
			continue
		}
		if !s.evictConn() {
			unix.Close(fd)
			continue
		}
		if err := s.add(fd); err != nil {
			logf("connection: %v", err)
		}
	}
}

// evictConn makes room for a new connection, which may be the next daemon's: if
// there are too many, it closes the oldest that is not a daemon's. It reports false
// if all are daemons'.
func (s *server) evictConn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) < connsMax {
		return true
	}
	var oldest *conn
	for c := range s.conns {
		if !c.daemon.Load() && (oldest == nil || c.order < oldest.order) {
			oldest = c
		}
	}
	if oldest == nil {
		return false
	}
	delete(s.conns, oldest) // its writer closes it in a moment
	oldest.closeNow()
	return true
}

// checkClientLimit returns an error if no further client can be served.
func (s *server) checkClientLimit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.clients) >= descriptor.Limit(clientsMax) {
		return conflict("the container already serves %d clients, which is the limit: disconnect some of them", len(s.clients))
	}
	return nil
}

// awaitConnEnd waits until a connection has ended, at most a second.
func (s *server) awaitConnEnd() {
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

// daemonConnected reports whether a daemon is connected, which then removes an
// exited container itself.
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

// stopListening removes the socket. Daemons then read the files instead.
func (s *server) stopListening() {
	unix.Unlinkat(s.shim.dirfd, proto.SocketFile, 0)
	close(s.closed)
	s.listener.close()
}

// trackClient makes the shim's exit wait until done is closed, because the client
// was served or has gone. The wait has no limit: if the shim exited with unsent
// bytes, the client would take that for the end of its stream.
func (s *server) trackClient(done <-chan struct{}) {
	s.mu.Lock()
	s.clients[done] = struct{}{}
	s.mu.Unlock()
	go func() {
		<-done
		s.mu.Lock()
		delete(s.clients, done)
		s.mu.Unlock()
		s.collect()
	}()
}

// collect is called when a connection, a client, an exec or a health check has ended. Now
// and then it returns their memory to the host.
func (s *server) collect() {
	s.mu.Lock()
	s.litter++
	due := s.litter >= collectAfter && len(s.clients) == 0 || s.litter >= 4*collectAfter
	if due {
		s.litter = 0
		if len(s.clients) == 0 {
			s.clients = map[<-chan struct{}]struct{}{} // a map keeps the memory of its most entries
		}
	}
	s.mu.Unlock()
	if due {
		debug.FreeOSMemory()
	}
}

// endClient ends a client's stream with last in a new goroutine, once the daemons
// have acknowledged the journal up to entry seq.
func (s *server) endClient(sock *stream.Socket, seq uint64, last []byte) {
	s.mu.Lock()
	flood := len(s.clients) >= 2*clientsMax
	s.mu.Unlock()
	if flood {
		sock.Refuse(last)
		return
	}
	c := stream.New(sock, stream.Options{}, nil)
	s.trackClient(c.Done())
	go func() {
		s.awaitAcks(seq)
		c.End(last)
		c.Join(nil, nil)
	}()
}

// awaitAcks waits until every connected daemon has acknowledged the journal up to
// entry seq. A client asks a daemon for the exit code as soon as its stream ends,
// so the daemon must know the code before that. A daemon that disconnects is not
// waited for.
func (s *server) awaitAcks(seq uint64) {
	timer := time.NewTimer(ackTime)
	defer timer.Stop()
	for {
		var behind *conn
		s.mu.Lock()
		for c := range s.conns {
			if c.acks.Load() && c.acked.Load() < seq {
				behind = c
				break
			}
		}
		settled := s.acked
		s.mu.Unlock()
		if behind == nil {
			return
		}
		select {
		case <-settled:
		case <-behind.done:
		case <-timer.C:
			logf("a daemon has not acknowledged journal entry %d for %v", seq, ackTime)
			return
		}
	}
}

// finish ends all clients' streams and closes all connections after everything due
// has been sent.
func (s *server) finish(ending []*client) {
	close(s.sealed)
	s.awaitAcks(s.shim.rec.snapshot().Seq)
	endStreams(ending)
	s.mu.Lock()
	conns := slices.Collect(maps.Keys(s.conns))
	clients := maps.Clone(s.clients)
	s.mu.Unlock()
	s.shim.waiters.containerEnded()
	for _, c := range conns {
		c.closeAfterCalls()
	}
	for _, c := range conns {
		<-c.done
	}
	for done := range clients {
		<-done
	}
}
