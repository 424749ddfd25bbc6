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
	"time"

	"github.com/moby/buildkit/util/bklog"

	"holdfast/internal/beside"
	"holdfast/internal/build"
	"holdfast/internal/build/stores"
)

// DefaultIdle is how long the process stays without anything to do.
const DefaultIdle = time.Minute

// server is the process.
type server struct {
	builder *builder
	running running
}

// Run serves builds until there has been none for as long as idle, or until SIGTERM.
func Run(o beside.Options, idle time.Duration) error {
	return beside.Run(build.Dir(o.ExecRoot), idle, o.Ready, func(*beside.Life) (beside.Work, error) {
		// What a killed process left is removed before anything is opened.
		b, err := openBuilder(context.Background(), o, stores.NewClient(build.StoresPath(o.ExecRoot), namespace))
		return &server{builder: b}, err
	})
}

// Busy: all that this process does is for a client.
func (s *server) Busy() bool { return false }

// Tidy collects the cache, because BuildKit does so only some time after a build.
func (s *server) Tidy() { s.builder.collectCache(context.Background()) }

// Close ends what builds there are.
func (s *server) Close() error { return s.builder.close() }

// log writes what nobody is told otherwise.
func logf(format string, args ...any) { bklog.L.Warnf(format, args...) }
