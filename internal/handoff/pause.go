package handoff

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// pause holds back accepting. Connections wait in the sockets' backlogs, which
// whoever else has the sockets may accept from meanwhile.
type pause struct {
	mu      sync.Mutex
	resumed chan struct{} // not nil while paused; closed when it is over
}

// Pause makes every Accept of these listeners wait. One that is under way ends
// with the connection that it has got, if any.
func (ls *Listeners) Pause() {
	ls.pause.mu.Lock()
	defer ls.pause.mu.Unlock()
	if ls.pause.resumed != nil {
		return
	}
	ls.pause.resumed = make(chan struct{})
	for _, l := range ls.list {
		// The deadline is this process's, not the socket's.
		_ = l.raw.SetDeadline(time.Unix(1, 0))
	}
}

// Resume lets Accept go on.
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

// Close stops accepting, also where that is paused. The socket lives on in who
// else has it.
func (ls *Listeners) Close() {
	for _, l := range ls.list {
		l.Close()
	}
	ls.Resume()
}
