// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// pause suspends accepting. Connections wait in the sockets' backlogs. Another
// process that has the sockets may accept them meanwhile.
type pause struct {
	mu      sync.Mutex
	resumed chan struct{} // not nil while paused; closed by Resume
}

// Pause makes every Accept of these listeners wait. An Accept that already has a
// connection still returns it.
func (ls *Listeners) Pause() {
	ls.pause.mu.Lock()
	defer ls.pause.mu.Unlock()
	if ls.pause.resumed != nil {
		return
	}
	ls.pause.resumed = make(chan struct{})
	for _, l := range ls.list {
		// The deadline applies to this process, not to the shared socket.
		_ = l.raw.SetDeadline(time.Unix(1, 0))
	}
}

// Resume ends Pause.
func (ls *Listeners) Resume() {
	ls.pause.mu.Lock()
	defer ls.pause.mu.Unlock()
	if ls.pause.resumed == nil {
		return
	}
	for _, l := range ls.list {
		_ = l.raw.SetDeadline(time.Time{})
	}
	close(ls.pause.resumed)
	ls.pause.resumed = nil
}

// Accept waits for the next connection, or for the end of the listener.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return conn, err
		}
		l.pause.mu.Lock()
		resumed := l.pause.resumed
		l.pause.mu.Unlock()
		if resumed != nil {
			<-resumed
		}
	}
}

// Close stops accepting, also while paused. Other processes that have the sockets
// still listen.
func (ls *Listeners) Close() {
	for _, l := range ls.list {
		l.Close()
	}
	ls.Resume()
}
