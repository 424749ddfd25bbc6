// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// calm is how long after the begin or end of the last request unused memory is
// returned to the host.
const calm = 2 * time.Second

// patience bounds that delay if requests never stop.
const patience = 30 * time.Second

// giveBackMemory passes requests on. Once no request has begun or ended for a
// while, it returns to the host the memory that requests and the start have
// used. The runtime would keep that memory: its collections depend on
// allocations, and a daemon without requests allocates nothing. A client that
// sends a request every second delays this, but not for ever.
func giveBackMemory(h http.Handler) http.Handler {
	b := &giveBack{}
	b.timer = time.AfterFunc(calm, b.now)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.later()
		defer b.later()
		h.ServeHTTP(w, r)
	})
}

type giveBack struct {
	timer *time.Timer
	mu    sync.Mutex
	since time.Time // since when it is due; zero if it is not
}

func (b *giveBack) later() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.since.IsZero() {
		b.since = now
	}
	b.timer.Reset(max(0, min(calm, patience-now.Sub(b.since))))
}

func (b *giveBack) now() {
	b.mu.Lock()
	b.since = time.Time{}
	b.mu.Unlock()
	// Pools, such as those for the buffers of connections, survive the first of
	// two collections.
	runtime.GC()
	debug.FreeOSMemory()
}

// startGrowth is the garbage, in percent of the memory in use, that the start
// may produce before a collection.
const startGrowth = 400

// growFreely avoids most collections during the start. The data read then is
// garbage as soon as it is decoded, and is returned by giveBackMemory. usual
// must be called at the end of the start.
func growFreely() (usual func()) {
	before := debug.SetGCPercent(startGrowth)
	if before < 0 || before > startGrowth { // keep a value that the user has set
		debug.SetGCPercent(before)
	}
	return func() { debug.SetGCPercent(before) }
}
