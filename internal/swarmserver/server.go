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
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/moby/swarmkit/v2/agent"
	"github.com/moby/swarmkit/v2/log"
	"github.com/sirupsen/logrus"

	"holdfast/internal/beside"
	"holdfast/internal/durable"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/internal/swarm"
	"holdfast/internal/swarmserver/local"
	"holdfast/internal/swarmserver/mesh"
	"holdfast/internal/swarmserver/task"
	"holdfast/internal/version"
)

// rest is how long a process stays that is in no swarm and has no client.
const rest = 2 * time.Second

// server is the process.
type server struct {
	o        beside.Options
	settings swarm.Settings
	engine   *task.Engine
	host     local.Host
	executor *task.Executor
	mesh     *mesh.Mesh
	mux      *http.ServeMux

	// reporting is held while the status is written. It is taken last.
	reporting sync.Mutex
	// change is held while the node joins, leaves, or is unlocked.
	change sync.Mutex

	life *beside.Life

	mu     sync.Mutex
	member *member // nil: in no swarm
}

// Run runs the node that the data root describes, and serves clients until the host
// has left its swarm, or until SIGTERM.
func Run(o beside.Options) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return beside.Run(swarm.Dir(o.ExecRoot), rest, o.Ready, func(life *beside.Life) (beside.Work, error) {
		s, err := open(o, life)
		if err != nil {
			return nil, err
		}
		// swarmkit and raft tell each step at the level below.
		logrus.SetLevel(logrus.WarnLevel)
		logrus.SetOutput(&boundedLog{file: os.Stderr})
		if err := s.learnFromCrash(); err != nil {
			log.L.Errorf("learn from the end of an earlier process: %v", err)
		}
		go s.executor.Sweep(ctx)
		go s.mesh.Run(ctx)
		s.resume()
		return s, nil
	})
}

// Busy reports whether the process is in a swarm.
func (s *server) Busy() bool { return s.present() != nil }

// Tidy has nothing to do.
func (s *server) Tidy() {}

// Close does not stop the node: swarmkit would remove the tasks. A process that just
// ends leaves what one leaves that is killed, and the next goes on with it.
func (s *server) Close() error { return nil }

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

// open makes the server.
func open(o beside.Options, life *beside.Life) (*server, error) {
	if err := os.MkdirAll(swarm.StateDir(o.DataRoot), 0o700); err != nil {
		return nil, err
	}
	s := &server{o: o, host: local.Host{DataRoot: o.DataRoot, ExecRoot: o.ExecRoot}, life: life}
	if err := json.Unmarshal([]byte(o.Settings), &s.settings); err != nil {
		return nil, fmt.Errorf("the daemon's settings: %w", err)
	}
	var err error
	if s.engine, err = task.NewEngine(swarm.EnginePath(o.ExecRoot)); err != nil {
		return nil, err
	}
	s.mesh = mesh.New(mesh.Options{
		StateDir: swarm.StateDir(o.DataRoot), Host: kernel.Host{Dir: swarm.OverlayDir(o.ExecRoot)}, Daemon: s.engine, Where: s.where,
	})
	s.executor = task.NewExecutor(s.engine, s.host, s.mesh, swarm.SecretsDir(o.ExecRoot))
	s.executor.SetAllocator(s.allocator)
	s.mux = s.routes()
	return s, nil
}

// allocator asks the managers for places on networks. It is nil while this node has no
// agent.
func (s *server) allocator() agent.ResourceAllocator {
	v, _ := s.view()
	if v.node == nil || v.node.Agent() == nil {
		return nil
	}
	return v.node.Agent().ResourceAllocator()
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
	s.mu.Unlock()
	s.life.Rest()
	s.report()
}

// report writes what the daemon has to know without asking. A status that can't be
// written is only old.
func (s *server) report() {
	s.reporting.Lock()
	defer s.reporting.Unlock()
	text, err := json.Marshal(swarm.Status{Release: version.Version, Node: s.status(), Settings: s.settings})
	if err == nil {
		err = durable.WriteFile(swarm.StatusPath(s.o.ExecRoot), text, 0o600)
	}
	if err != nil {
		log.L.Warnf("write the status of the node: %v", err)
	}
}
