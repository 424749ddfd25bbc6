// SPDX-License-Identifier: Apache-2.0

package eventserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"os"
	"path/filepath"
	"sync"
	"time"

	"holdfast/internal/event"
	"holdfast/internal/fdpass"
)

const (
	// idle is how long the process waits for a client if it has none.
	idle = 10 * time.Second
	// closeTimeout is how long a client may take to close its connection after the
	// end of its stream.
	closeTimeout = 10 * time.Second
)

// server is the event server's process.
type server struct {
	control *net.UnixConn
	journal *event.Journal
	// ended is closed when a daemon has stopped together with its containers,
	// after which there are no more events.
	ended    chan struct{}
	endOnce  sync.Once
	dir      string      // directory of the journal and the record of the daemon's lives
	life     uint64      // of the daemon that started this process
	lastSeen os.FileInfo // the record as last read; used by one goroutine

	mu      sync.Mutex
	clients int
	orphan  bool // the daemon's end of the connection is closed
	rest    *time.Timer
	done    chan struct{} // closed when the process has nothing left to do
}

// Run is the event server's process. It serves the clients that arrive over
// control until there are none and no more can arrive. dir is the directory of
// the journal. Run takes ownership of control.
func Run(control *os.File, dir string) error {
	conn, err := net.FileConn(control)
	control.Close()
	if err != nil {
		return fmt.Errorf("event server: its connection to the daemon: %w", err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return fmt.Errorf("event server: its connection to the daemon is a %T", conn)
	}
	s := &server{
		control: unixConn, dir: dir, ended: make(chan struct{}), done: make(chan struct{}),
	}
	defer s.control.Close()
	// Otherwise ps would show "exe". Nothing depends on the name.
	_ = os.WriteFile("/proc/self/comm", []byte(processName), 0)
	lives, err := event.ReadLives(dir)
	if err != nil {
		return fmt.Errorf("event server: %w", err)
	}
	if list := lives.List(); len(list) > 0 {
		s.life = list[len(list)-1].Number
	}
	opened := make(chan struct{})
	s.journal, err = event.OpenView(dir, func() { <-opened; s.look() })
	close(opened)
	if err != nil {
		return fmt.Errorf("event server: %w", err)
	}
	defer s.journal.Close()
	s.rest = time.AfterFunc(idle, s.quit)
	go s.accept()
	<-s.done
	return nil
}

// look ends all streams once a daemon has stopped its containers and itself.
func (s *server) look() {
	st, err := os.Stat(filepath.Join(s.dir, event.LivesFile))
	if err != nil || s.lastSeen != nil && os.SameFile(st, s.lastSeen) && st.ModTime().Equal(s.lastSeen.ModTime()) {
		return
	}
	s.lastSeen = st
	lives, err := event.ReadLives(s.dir)
	if err != nil {
		return
	}
	for _, life := range lives.List() {
		if life.Number < s.life || !life.ContainersStopped {
			continue
		}
		// Events recorded before the daemon's end are still sent.
		s.journal.Look()
		s.endOnce.Do(func() { close(s.ended) })
	}
}

// accept accepts clients until the daemon closes the connection.
func (s *server) accept() {
	buf := make([]byte, messageLimit+1)
	oob := make([]byte, fdpass.Space)
	for {
		n, oobn, _, _, err := s.control.ReadMsgUnix(buf, oob)
		if n == 0 || err != nil {
			break
		}
		client, err := fdpass.Socket(oob[:oobn])
		var r Request
		if err == nil {
			if err = json.Unmarshal(buf[:n], &r); err != nil {
				client.Close()
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "event server: a client's request:", err)
			s.count(0, report{Answer: true, Refused: err.Error()})
			continue
		}
		s.count(1, report{Answer: true})
		go func() {
			defer s.count(-1, report{})
			s.serve(client, r)
		}()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orphan = true
	if s.clients == 0 {
		s.rest.Reset(0)
	}
}

// count changes the number of clients and reports it to the daemon.
func (s *server) count(by int, r report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients += by
	r.Clients = s.clients
	text, err := json.Marshal(r)
	if err == nil {
		_, _ = s.control.Write(text) // an error means that the daemon has died
	}
	switch {
	case s.clients > 0:
		s.rest.Stop()
	case s.orphan:
		s.rest.Reset(0)
	default:
		s.rest.Reset(idle)
	}
}

// quit ends the process, unless a client has arrived meanwhile.
func (s *server) quit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients > 0 {
		return
	}
	select {
	case <-s.done:
	default:
		close(s.done)
	}
	// A daemon that sends a client from now on gets an error and starts another
	// process.
	s.control.Close()
}

// serve sends events to a client until the client leaves, Until has passed, or
// the daemon has stopped together with its containers. In the last two cases it
// sends the last chunk of the answer, so that a client can distinguish the end
// of the stream from the death of this process.
func (s *server) serve(client net.Conn, r Request) {
	defer client.Close()
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan struct{})
	go func() {
		defer close(left)
		defer cancel()
		// Clients send nothing more. Discard whatever arrives, until the client
		// leaves.
		_, _ = io.Copy(io.Discard, client)
	}()
	defer func() { <-left }()
	defer client.Close()

	w := bufio.NewWriter(client)
	if _, err := w.Write(r.Head); err != nil || w.Flush() != nil {
		return
	}
	sub := s.journal.SubscribeFrom(r.From, r.Since, r.Until, func(m event.Message) bool { return event.Match(r.Filters, m) })
	defer sub.Close()
	sub.EndWith(s.ended)
	// The chunked writer makes three small writes per chunk. w joins them, so
	// that an event takes one system call.
	chunks := httputil.NewChunkedWriter(w)
	var line lineBuffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	for {
		m, err := sub.Next(ctx)
		if errors.Is(err, io.EOF) {
			_ = client.SetWriteDeadline(time.Now().Add(closeTimeout))
			if chunks.Close() == nil {
				_, _ = w.WriteString("\r\n")
			}
			if w.Flush() == nil {
				s.part(client, left)
			}
			return
		}
		if err != nil {
			if ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "event server:", err)
			}
			return
		}
		line = line[:0]
		if r.Sequence {
			line = append(line, 0x1e)
		}
		if err := enc.Encode(m.Answer(r.Legacy)); err != nil {
			fmt.Fprintln(os.Stderr, "event server: encode an event:", err)
			return
		}
		if _, err := chunks.Write(line); err != nil || w.Flush() != nil {
			return
		}
	}
}

// part closes the sending side and waits until the client closes its own.
// Closing the socket while bytes arrive would reset the connection, and the
// client might lose the last events.
func (s *server) part(client net.Conn, left <-chan struct{}) {
	if half, ok := client.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	_ = client.SetReadDeadline(time.Now().Add(closeTimeout))
	<-left
}

type lineBuffer []byte

func (b *lineBuffer) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}
