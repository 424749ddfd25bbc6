// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"holdfast/internal/shim/ports"
	"holdfast/internal/shim/proto"
)

// Shim is one container's shim. It has the parts and what they share; each part has
// its own lock.
type Shim struct {
	boot   *proto.Bootstrap
	dirfd  int // the run directory, O_PATH
	lockFD int // holds the lock on the run directory

	rec     *record
	reaper  *reaper
	runtime *ociRuntime
	gate    *gate // see quiesce.go
	life    *supervisor
	verbs   *verbs
	stops   *stops
	out     *output
	execs   execs
	waiters waiters
	server  *server
	ports   *ports.Set
	names   nameServer

	consoles  atomic.Uint64 // numbers temporary names
	upgrading atomic.Bool

	portsMu sync.Mutex // held by setPorts: ports and their teardown change together

	saving sync.Mutex // held by saveBootstrap, so that the newest parameters are written last

	mu     sync.Mutex // guards boot.Teardown too
	policy proto.RestartPolicy
}

// newShim makes a shim without descriptors, processes or goroutines.
func newShim(b *proto.Bootstrap, release string, rec *record, reaper *reaper, runtime *ociRuntime) *Shim {
	s := &Shim{boot: b, rec: rec, reaper: reaper, runtime: runtime, gate: newGate(), out: newOutput(), ports: ports.New(), policy: b.Restart}
	s.life = &supervisor{shim: s, done: make(chan struct{})}
	s.server = &server{shim: s, release: release, closed: make(chan struct{}), sealed: make(chan struct{}),
		conns: map[*conn]struct{}{}, clients: map[<-chan struct{}]struct{}{}, acked: make(chan struct{})}
	s.verbs = &verbs{id: b.ID, rec: rec, runtime: runtime, life: s.life}
	s.stops = &stops{boot: b, rec: rec, gate: s.gate, life: s.life, verbs: s.verbs, sealed: s.server.sealed, all: map[*stopping]struct{}{}}
	return s
}

// countDropped makes the state count the lines that this shim's log drops, on top
// of those dropped before.
func (s *Shim) countDropped(before uint64) {
	s.rec.mu.Lock()
	s.rec.dropped = func() uint64 { return before + s.out.dropped() }
	s.rec.mu.Unlock()
}

// restartPolicy returns the policy of the last update.
func (s *Shim) restartPolicy() proto.RestartPolicy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy
}

// bootstrap returns the parameters as they are now, for the next shim.
func (s *Shim) bootstrap() *proto.Bootstrap {
	ports := s.ports.Ports()
	s.mu.Lock()
	b := *s.boot
	b.Restart = s.policy
	s.mu.Unlock()
	s.rec.mu.Lock()
	b.Attributes = s.rec.attrs
	s.rec.mu.Unlock()
	b.Ports, b.Adopt = ports, nil
	return &b
}

// saveBootstrap writes the parameters for the shim that would adopt the container.
func (s *Shim) saveBootstrap() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	b := s.bootstrap()
	raw, err := proto.Marshal(b)
	if err != nil {
		return err
	}
	path := filepath.Join(b.RunDir, proto.BootstrapFile)
	if err := os.WriteFile(path+".tmp", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func (s *Shim) update(u proto.Update) error {
	if len(u.Resources) > 0 {
		if err := s.verbs.update(s.boot.RunDir, u.Resources); err != nil {
			return err
		}
	}
	if u.Restart != nil {
		s.mu.Lock()
		s.policy = *u.Restart
		s.mu.Unlock()
	}
	if u.Attributes != nil {
		s.rec.setAttributes(u.Attributes)
	}
	if u.Restart != nil || u.Attributes != nil {
		return s.saveBootstrap()
	}
	return nil
}

// resize sets the size of a terminal: an exec session's or the container's.
func (s *Shim) resize(r proto.Resize) error {
	if r.Exec != "" {
		return s.execResize(r)
	}
	return s.life.resize(r)
}
