// SPDX-License-Identifier: Apache-2.0

package main

import (
	"container/list"
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/api/wire"
)

// Clients must not use up the resources that the daemon needs for its own work.
// Without a free descriptor it could not start a container, nor even accept a
// connection to refuse it. So the number of connections is bounded. A new
// connection beyond the bound replaces the one that has been without a request
// for longest: a keep-alive connection, one that sent nothing, or one that sent
// half a head. If every connection is in use, the new client gets an error.
// Sockets that were passed to shims do not count.

// limits are the bounds of the connections.
type limits struct {
	// conns bounds the open connections, because each takes some 30 KB of
	// memory.
	conns int
	// descriptor is the highest descriptor that a connection may have. The
	// kernel allocates the lowest free one, so all below it are in use, for any
	// purpose.
	descriptor int
	// beyond is how many more connections are accepted to answer that there are
	// too many.
	beyond int
}

// maxConns is the bound if there are enough descriptors.
const maxConns = 16384

// cutTime bounds how long accepting waits for a connection to be closed.
const cutTime = time.Second

// connLimits are the limits of this process. A quarter of the descriptors, but
// at most 4096, is reserved for the daemon itself.
func connLimits() limits {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return limits{conns: maxConns, descriptor: maxConns, beyond: 64}
	}
	all := int(min(r.Cur, 1<<30))
	own := min(all/4, 4096)
	return limits{conns: maxConns, descriptor: all - own, beyond: min(64, own/4)}
}

// connections are the open connections. The gate's lock guards them.
type connections struct {
	limits
	// room is how many connections may be open now: conns, or less if there
	// were not enough descriptors for that.
	room int
	all  map[net.Conn]*connection
	// free are the connections without a running request. The first has been so
	// for longest.
	free *list.List
}

type connection struct {
	conn    net.Conn
	place   *list.Element // in free; nil while a request is running
	gone    chan struct{} // closed when the connection is
	silent  bool          // nothing was received on it
	refused bool          // it exceeds the bound
}

func newConnections(l limits) connections {
	return connections{limits: l, room: l.conns, all: map[net.Conn]*connection{}, free: list.New()}
}

type connKey struct{}

// withConn is an http.Server's ConnContext. It lets serve find the connection.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(wire.WithConn(ctx, c), connKey{}, c)
}

// add adds a new connection, and closes others if there are too many. It
// returns the last one that it closed.
func (cs *connections) add(conn net.Conn) (closing *connection) {
	c := &connection{conn: conn, gone: make(chan struct{}), silent: true}
	beyond := descriptorOf(conn) - cs.descriptor
	switch {
	case beyond > 0:
		// Descriptors are scarce: allow no more connections than now until most
		// of them are closed.
		cs.room = min(cs.room, max(len(cs.all), 1))
	case len(cs.all) < cs.room/2:
		cs.room = cs.conns
	}
	for over := len(cs.all) + 1 - cs.room; over > 0; over-- {
		oldest := cs.free.Front()
		if oldest == nil {
			c.refused = true
			if beyond > cs.beyond || over > cs.beyond {
				cut(conn)
			}
			break
		}
		closing = oldest.Value.(*connection)
		cut(closing.conn)
		cs.take(closing) // the server calls remove later
	}
	cs.all[conn] = c
	c.place = cs.free.PushBack(c)
	return closing
}

// cut closes a connection at once, without TLS's close_notify, which waits for
// the other side.
func cut(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	conn.Close()
}

// descriptorOf returns a connection's descriptor, or 0 if it has none.
func descriptorOf(conn net.Conn) int {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	number := 0
	if s, ok := conn.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { number = int(fd) })
		}
	}
	return number
}

func (cs *connections) take(c *connection) {
	if c.place != nil {
		cs.free.Remove(c.place)
		c.place = nil
	}
}

// serve marks a connection as having a running request. It reports whether the
// request must be refused.
func (cs *connections) serve(ctx context.Context) (refused bool) {
	conn, _ := ctx.Value(connKey{}).(net.Conn)
	c := cs.all[conn]
	if c == nil {
		return false
	}
	cs.take(c)
	return c.refused
}

func (cs *connections) spoke(conn net.Conn) {
	if c := cs.all[conn]; c != nil {
		c.silent = false
	}
}

// idle marks a connection whose request was answered.
func (cs *connections) idle(conn net.Conn) {
	if c := cs.all[conn]; c != nil && c.place == nil {
		c.place = cs.free.PushBack(c)
	}
}

func (cs *connections) remove(conn net.Conn) {
	if c := cs.all[conn]; c != nil {
		cs.take(c)
		close(c.gone)
		delete(cs.all, conn)
	}
}

func (cs *connections) closeSilent() {
	for _, c := range cs.all {
		if c.silent {
			c.conn.Close()
		}
	}
}
