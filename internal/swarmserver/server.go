// SPDX-License-Identifier: Apache-2.0

// Package swarmserver is the process that runs a node of a swarm. It embeds swarmkit,
// and no other package imports it, so that a daemon whose host is in no swarm does not
// pay for it. See package swarm, the daemon's side, for how the two work together.
//
// The process owns the directory swarm in the data root: certificates, the raft log of
// a manager, and the tasks of this node. If it is killed, the next process goes on
// with them: the containers of tasks run on, and the managers do not miss a process
// that is back within seconds.
package swarmserver

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/moby/swarmkit/v2/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"holdfast/internal/beside"
	"holdfast/internal/durable"
	"holdfast/internal/overlay/kernel"
	"holdfast/internal/swarm"
	"holdfast/internal/swarmserver/local"
	"holdfast/internal/swarmserver/mesh"
	"holdfast/internal/swarmserver/task"
	"holdfast/internal/version"
)

// Options are what Run needs.
type Options struct {
	DataRoot, ExecRoot string
	// Ready gets a word when clients can be passed, or the reason why not, and is
	// then closed.
	Ready io.WriteCloser
}

// rest is how long a process stays that is in no swarm and has no client.
const rest = 2 * time.Second

// server is the process.
type server struct {
	o        Options
	clients  *beside.Server
	engine   *task.Engine
	host     local.Host
	executor *task.Executor
	mesh     *mesh.Mesh
	mux      *http.ServeMux

	// reporting is held while the status is written. It is taken last.
	reporting sync.Mutex
	// change is held while the node joins, leaves, or is unlocked.
	change sync.Mutex

	mu      sync.Mutex
	member  *member // nil: in no swarm
	working int     // clients
	timer   *time.Timer
	ending  bool
	done    chan struct{} // closed when the process shall end
}

// Run runs the node that the data root describes, and serves clients until the host
// has left its swarm, or until SIGTERM.
func Run(o Options) error {
	s, unlock, err := open(o)
	if err != nil {
		_, _ = io.WriteString(o.Ready, err.Error())
		o.Ready.Close()
		return err
	}
	defer unlock()
	// swarmkit and raft tell each step at the level below.
	logrus.SetLevel(logrus.WarnLevel)
	logrus.SetOutput(&boundedLog{file: os.Stderr})
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	go func() {
		<-stop
		s.end()
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go s.executor.Sweep(ctx)
	go s.mesh.Run(ctx)
	s.resume()
	s.mu.Lock()
	s.timer = time.AfterFunc(rest, s.quit)
	s.mu.Unlock()
	web := &http.Server{Handler: s}
	go s.clients.Serve(web)
	_, _ = io.WriteString(o.Ready, beside.ReadyWord)
	o.Ready.Close()
	<-s.done
	s.clients.Close()
	web.Close()
	// The node is not stopped: swarmkit would remove the tasks. A process that just
	// ends leaves what one leaves that is killed, and the next goes on with it.
	return nil
}

// maxLog is the size in bytes from which the log is begun anew.
const maxLog = 4 << 20

// boundedLog is a log that does not grow for as long as a node is in its swarm. The
// file is open for appending, so that it can be truncated under the writer.
type boundedLog struct {
	mu      sync.Mutex
	file    *os.File
	written int
}

func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.written += len(p); l.written > maxLog {
		_ = l.file.Truncate(0) // a pipe or a terminal needs no bound
		l.written = len(p)
	}
	return l.file.Write(p)
}

// open takes the lock and makes the server.
func open(o Options) (_ *server, unlock func(), err error) {
	dir := swarm.Dir(o.ExecRoot)
	lock, err := beside.Lock(dir)
	if err != nil {
		return nil, nil, err
	}
	unlock = func() { lock.Close() }
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	if err := os.MkdirAll(swarm.StateDir(o.DataRoot), 0o700); err != nil {
		return nil, nil, err
	}
	s := &server{o: o, host: local.Host{DataRoot: o.DataRoot, ExecRoot: o.ExecRoot}, done: make(chan struct{})}
	if s.engine, err = task.NewEngine(swarm.EnginePath(o.ExecRoot)); err != nil {
		return nil, nil, err
	}
	s.mesh = mesh.New(mesh.Options{
		StateDir: swarm.StateDir(o.DataRoot), Host: kernel.Host{Dir: swarm.OverlayDir(o.ExecRoot)}, Daemon: s.engine, Where: s.where,
	})
	s.executor = task.NewExecutor(s.engine, s.host, s.mesh, swarm.SecretsDir(o.ExecRoot))
	s.mux = s.routes()
	if s.clients, err = beside.Listen(dir, s); err != nil {
		return nil, nil, err
	}
	return s, unlock, nil
}

// present is the member that this process runs, or nil.
func (s *server) present() *member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.member
}

func (s *server) setMember(m *member) {
	s.mu.Lock()
	s.member = m
	if m == nil && s.working == 0 && s.timer != nil {
		s.timer.Reset(rest)
	}
	s.mu.Unlock()
	s.report()
}

// report writes what the daemon has to know without asking. A status that can't be
// written is only old.
func (s *server) report() {
	s.reporting.Lock()
	defer s.reporting.Unlock()
	text, err := json.Marshal(swarm.Status{Release: version.Version, Node: s.status()})
	if err == nil {
		err = durable.WriteFile(swarm.StatusPath(s.o.ExecRoot), text, 0o600)
	}
	if err != nil {
		log.L.Warnf("write the status of the node: %v", err)
	}
}

// Begin notes that a client has come, until end is called.
func (s *server) Begin() (end func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, false
	}
	s.working++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.working--; s.working == 0 {
			s.timer.Reset(rest)
		}
	}), true
}

// quit ends a process that is in no swarm and has no client.
func (s *server) quit() {
	s.mu.Lock()
	idle := s.working == 0 && s.member == nil
	s.ending = s.ending || idle
	s.mu.Unlock()
	if idle {
		s.end()
	}
}

// Stop ends the process. One that is in a swarm is never idle.
func (s *server) Stop(all bool) bool {
	if all {
		s.end()
		return true
	}
	s.quit()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

// end ends the process.
func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	select {
	case <-s.done:
	default:
		close(s.done)
	}
}
