// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/moby/moby/api/types/build"

	"holdfast/internal/beside"
	"holdfast/internal/build/stores"
	"holdfast/internal/errs"
	"holdfast/internal/network"
)

// Stores are what the build process uses of the daemon, and Config what it has to
// know of the daemon's configuration.
type (
	Stores = stores.Stores
	Config = stores.Config
	GC     = stores.GC
	Rule   = stores.Rule
)

// Options are the options of a Builder.
type Options struct {
	// Binary is the path of holdfast-build.
	Binary   string
	DataRoot string
	ExecRoot string
	// Stores are lent to the build process. Networks is set by New.
	Stores   Stores
	Networks Sandboxes
	// Mode returns a network mode with the full ID of the container in it, if any.
	Mode func(ctx context.Context, mode string) (string, error)
	// Names writes the file that the name server of a step on a user-defined network
	// answers from, and returns the step's resolv.conf.
	Names func(view string, s network.Sandbox) ([]byte, error)
	Log   *slog.Logger
	// Started, if not nil, is called with the pid of each process that was started.
	Started func(pid int)
}

// closeTimeout bounds how long Close waits for calls that have begun.
const closeTimeout = 10 * time.Second

// Builder passes requests to the build process. Its methods may be called by several
// goroutines.
type Builder struct {
	o        Options
	networks *networks
	process  *beside.Process

	mu     sync.Mutex // held while the stores are opened and a process is started
	server *stores.Server
	closed bool
}

// New makes a Builder. It starts nothing.
func New(o Options) *Builder {
	b := &Builder{o: o, networks: newNetworks(o)}
	b.o.Stores.Networks = b.networks
	b.process = &beside.Process{
		Name: "the build process", Binary: o.Binary, Args: []string{"--data-root", o.DataRoot, "--exec-root", o.ExecRoot},
		Dir: Dir(o.ExecRoot), Log: logFile, Started: o.Started, Ended: b.ended,
	}
	return b
}

// Installed reports whether there is a program that builds.
func (b *Builder) Installed() bool { return b.process.Installed() }

// ended is called when a build process has ended.
func (b *Builder) ended() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server != nil {
		b.server.CloseWriters()
	}
}

// Used reports whether anything was ever built in this data root.
func (b *Builder) Used() bool {
	_, err := os.Stat(StateDir(b.o.DataRoot))
	return err == nil
}

// Resume is called when the daemon has restored everything. It lends the stores to a
// build process that an earlier daemon started. If that process was killed, Resume
// removes what it left.
func (b *Builder) Resume(ctx context.Context) error {
	if _, err := os.Stat(Dir(b.o.ExecRoot)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	alive, err := b.process.Alive()
	if err != nil {
		return err
	}
	if alive {
		return b.lend()
	}
	b.networks.sweep(ctx)
	if left, err := os.ReadDir(RuncDir(b.o.ExecRoot)); err == nil && len(left) > 0 {
		// A process that starts sweeps first, and ends soon.
		b.o.Log.Warn("the build process was killed during a build: what is left of the build is removed", "steps", len(left))
		go func() {
			if err := b.Ready(context.WithoutCancel(ctx)); err != nil {
				b.o.Log.Error("what is left of a build can't be removed", "error", err)
			}
		}()
	}
	return nil
}

// Ready makes sure that a build process runs and can use the stores. Errors:
// ErrNotImplemented if it is not installed, ErrUnavailable.
func (b *Builder) Ready(ctx context.Context) error {
	if !b.Installed() {
		return errs.NotImplemented("building images needs the program holdfast-build, which is not at %s: install it there", b.o.Binary)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errs.Unavailable("the daemon is being replaced: ask again")
	}
	alive, err := b.process.Alive()
	if err != nil {
		return err
	}
	if alive {
		return b.lend()
	}
	b.networks.sweep(ctx)
	if err := b.lend(); err != nil {
		return err
	}
	// Those of a process that an earlier daemon has started. The next process could wait
	// for them for ever.
	b.server.CloseWriters()
	return b.process.Start(ctx)
}

// lend opens the socket of the stores. The caller holds mu.
func (b *Builder) lend() error {
	if b.server != nil {
		return nil
	}
	path := StoresPath(b.o.ExecRoot)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("builds: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("builds: lend the stores: %w", err)
	}
	l.SetUnlinkOnClose(false) // the next daemon may have made its own by then
	b.server = stores.NewServer(b.o.Stores, b.o.Log)
	go func(s *stores.Server) {
		if err := s.Serve(l); err != nil {
			b.o.Log.Error("the build process can no longer use the stores", "error", err)
		}
	}(b.server)
	return nil
}

// Give passes a client to the build process, with the head of its request in Pending.
// The caller closes its own descriptor. If the process has just ended, another is
// started.
func (b *Builder) Give(ctx context.Context, client beside.Client, headers map[string][]string) error {
	var err error
	for range 3 {
		if err = b.Ready(ctx); err != nil {
			return err
		}
		if err = b.process.Pass(client, headers); !errors.Is(err, beside.ErrGone) {
			return err
		}
	}
	return errs.Unavailable("pass a client to the build process: %v", err)
}

// Usage asks the build process what the cache takes on disk.
func (b *Builder) Usage(ctx context.Context) (du build.DiskUsage, err error) {
	err = b.process.Get(ctx, UsagePath, func(c beside.Client) error { return b.Give(ctx, c, nil) }, &du)
	return du, err
}

// Stop ends a build process that has nothing to do. With all set it ends any, and waits
// until what its builds have on the host is removed.
func (b *Builder) Stop(all bool) {
	what := beside.StopIdle
	if all {
		what = beside.StopAll
	}
	b.process.Stop(what)
}

// Close stops lending the stores. The build process waits for the next daemon.
func (b *Builder) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := b.server.Shutdown(ctx)
	b.server = nil
	return err
}
