// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"sync"

	"holdfast/internal/engine"
	"holdfast/internal/handoff/systemd"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// shims gives the engine access to shims through package client.
type shims struct {
	release string
	// place moves a shim, or another process that outlives the daemon, out of
	// the daemon's unit. beside reports whether a process is in it. Both are
	// nil without a unit.
	place  func(pid int)
	beside func(pid int) bool
}

// newShims makes shims that systemd accounts separately from the daemon.
func newShims(release string, manager *systemd.Manager, log *slog.Logger) shims {
	s := shims{release: release}
	if manager == nil {
		return s
	}
	s.beside = manager.Beside
	var once sync.Once
	s.place = func(pid int) {
		err := manager.Move(context.Background(), pid)
		if err != nil && manager.Beside(pid) {
			once.Do(func() {
				log.Warn("shims stay in the daemon's own unit, which accounts for their memory and reports them as left-over processes", "error", err)
			})
		}
	}
	return s
}

func (s shims) Spawn(ctx context.Context, o client.Options) (engine.Shim, error) {
	o.Release = s.release
	shim, err := client.Spawn(ctx, o)
	if err != nil {
		return nil, err // a nil *client.Shim would not be a nil interface
	}
	if s.place != nil {
		go s.place(shim.Hello().Pid)
	}
	return shim, nil
}

func (s shims) Dial(ctx context.Context, runDir string) (engine.Shim, error) {
	shim, err := client.Dial(ctx, runDir, s.release)
	if err != nil {
		return nil, err
	}
	// The shim may be in the unit still: an older release left it there, or the
	// daemon was killed before it moved the shim.
	if pid := shim.Hello().Pid; s.beside != nil && s.beside(pid) {
		go s.place(pid)
	}
	return shim, nil
}

// guest is shims for an observer, which the shims do not regard as their
// daemon.
type guest struct{ shims }

func (guest) Dial(ctx context.Context, runDir string) (engine.Shim, error) {
	shim, err := client.DialGuest(ctx, runDir)
	if err != nil {
		return nil, err
	}
	return shim, nil
}

func (shims) State(runDir string) (proto.State, error) { return client.ReadState(runDir) }
func (shims) Exit(dataDir string) (proto.State, error) { return client.ReadExit(dataDir) }

// Bootstrap returns the bootstrap message that the last shim of a run directory
// has received.
func (shims) Bootstrap(runDir string) (proto.Bootstrap, error) { return client.ReadBootstrap(runDir) }

func (shims) Journal(runDir string, after uint64) ([]proto.Entry, error) {
	return client.ReadJournal(runDir, after)
}
