package main

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// How long a stop waits: for requests under way, and for the first word of a
// client that has connected and asked nothing yet.
const (
	requestGrace = 2 * time.Second
	silentGrace  = 200 * time.Millisecond
)

// hangUp ends the API: no new connections, then every stream, then what is
// left of the requests.
func (d *daemon) hangUp() {
	d.endRequests()
	// http.Server.Shutdown would wait for silent connections as for requests.
	timer := time.AfterFunc(silentGrace, d.silent.close)
	defer timer.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), requestGrace)
	defer cancel()
	if err := d.server.Shutdown(ctx); err != nil {
		d.server.Close()
	}
}

// silent are the connections on which no request has come yet.
type silent struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
}

// track is an http.Server's ConnState.
func (s *silent) track(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state != http.StateNew {
		delete(s.conns, c)
		return
	}
	if s.conns == nil {
		s.conns = map[net.Conn]bool{}
	}
	s.conns[c] = true
}

func (s *silent) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}
