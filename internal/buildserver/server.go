// SPDX-License-Identifier: Apache-2.0

// Package buildserver is the process that builds images. It embeds BuildKit, and no
// other package imports it, so that a daemon that never builds does not pay for it.
// See package build, the daemon's side, for how the two work together.
//
// The process owns the directory build in the data root: the databases of
// BuildKit's cache and history. Layers, blobs and names are in the daemon's stores,
// which it uses through package stores. What a RUN step needs on this host is named
// after the step, so that the next process finds what this one leaves if it is
// killed.
package buildserver

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/moby/buildkit/util/bklog"
	"golang.org/x/sys/unix"

	"holdfast/internal/beside"
	"holdfast/internal/build"
	"holdfast/internal/build/stores"
)

// Options are what Run needs.
type Options struct {
	DataRoot, ExecRoot string
	// Ready gets a "+" when clients can be passed, or the reason why not, and is
	// then closed.
	Ready io.WriteCloser
	// Idle is how long the process stays without anything to do.
	Idle time.Duration
}

// DefaultIdle is the default of Options.Idle.
const DefaultIdle = time.Minute

// server is the process.
type server struct {
	o       Options
	clients *beside.Server
	builder *builder
	running running

	mu      sync.Mutex
	working int // clients and requests
	// collected: the cache was collected since there was something to do.
	collected bool
	rest      *time.Timer
	done      chan struct{} // closed when the process shall end
	ending    bool
}

// Run serves builds until there has been none for a while, or until SIGTERM.
func Run(o Options) error {
	s, unlock, err := open(o)
	if err != nil {
		_, _ = io.WriteString(o.Ready, err.Error())
		o.Ready.Close()
		return err
	}
	defer unlock()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	go func() {
		<-stop
		s.end()
	}()
	web := &http.Server{Handler: s}
	s.mu.Lock()
	s.rest = time.AfterFunc(o.Idle, s.quit)
	s.mu.Unlock()
	go s.clients.Serve(web)
	_, _ = io.WriteString(o.Ready, beside.ReadyWord)
	o.Ready.Close()
	<-s.done
	s.clients.Close()
	web.Close()
	return s.builder.close()
}

// open takes the lock, removes what a killed process left, and opens everything.
func open(o Options) (_ *server, unlock func(), err error) {
	dir := build.Dir(o.ExecRoot)
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
	s := &server{o: o, done: make(chan struct{})}
	remote := stores.NewClient(build.StoresPath(o.ExecRoot), namespace)
	if s.builder, err = openBuilder(context.Background(), o, remote); err != nil {
		return nil, nil, err
	}
	if s.clients, err = beside.Listen(dir, s); err != nil {
		return nil, nil, err
	}
	return s, unlock, nil
}

// Begin notes that there is something to do, until end is called. It returns false
// if the process is about to end.
func (s *server) Begin() (end func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, false
	}
	s.working++
	s.collected = false
	s.rest.Stop()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.working--; s.working == 0 {
			s.rest.Reset(s.o.Idle)
		}
	}), true
}

// quit ends the process unless there is something to do. Before that it collects the
// cache, because BuildKit does so only some time after a build.
func (s *server) quit() {
	s.mu.Lock()
	idle, collect := s.working == 0, !s.collected
	s.collected = s.collected || idle
	s.ending = s.ending || idle && !collect
	s.mu.Unlock()
	switch {
	case !idle: // end starts the timer again
	case collect:
		s.builder.collectCache(context.Background())
		s.quit()
	default:
		s.end()
	}
}

// Stop ends the process, unless all is false and there is something to do. The daemon
// is about to end, so the cache can't be collected.
func (s *server) Stop(all bool) bool {
	if all {
		s.end()
		return true
	}
	s.mu.Lock()
	s.collected = s.collected || s.working == 0
	s.mu.Unlock()
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

// log writes what nobody is told otherwise.
func logf(format string, args ...any) { bklog.L.Warnf(format, args...) }
