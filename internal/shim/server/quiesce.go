// SPDX-License-Identifier: Apache-2.0

package server

import (
	"sync"
	"time"

	"holdfast/internal/shim/stream"
)

// Before a re-exec the shim becomes quiescent: every byte is at its source, at its
// destination, or in a struct that is handed over. Two locks see to that.
//
// motion (the stream package's Motion) is held for reading during each step that
// moves bytes. Whoever holds it for writing sees every stream between two steps.
//
// The gate protects operations of several steps that can't be interrupted: a call
// of the OCI runtime, a request, the end of a run. Closing the gate waits until all
// of them have left.
var motion = &stream.Motion

// moving makes the read side of motion a sync.Locker.
type moving = stream.Step

// gate admits any number of operations while it is open, and none while it is shut.
type gate struct {
	mu       sync.Mutex
	inside   int
	shut     bool
	shutting chan struct{} // closed while the gate is being shut; made anew when it opens
	changed  chan struct{} // closed at every change, then made anew
}

func newGate() *gate {
	return &gate{shutting: make(chan struct{}), changed: make(chan struct{})}
}

// notify wakes all waiters. It is called with the lock held.
func (g *gate) notify() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// enter waits while the gate is shut. It is not reentrant: an operation that enters
// twice would deadlock with close.
func (g *gate) enter() {
	g.mu.Lock()
	for g.shut {
		changed := g.changed
		g.mu.Unlock()
		<-changed
		g.mu.Lock()
	}
	g.inside++
	g.mu.Unlock()
}

func (g *gate) leave() {
	g.mu.Lock()
	g.inside--
	g.notify()
	g.mu.Unlock()
}

// closing returns a channel that is closed while the gate is being shut: long
// operations inside should then stop early.
func (g *gate) closing() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shutting
}

// close shuts the gate and waits until no operation is inside. It reports false,
// and leaves the gate open, if that takes longer than limit. It also reports false
// if the gate is already shut.
func (g *gate) close(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return false
	}
	g.shut = true
	close(g.shutting)
	for g.inside > 0 {
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
			g.mu.Lock()
		case <-timer.C:
			g.mu.Lock()
			if g.inside > 0 {
				g.reopen()
				return false
			}
		}
	}
	return true
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reopen()
}

func (g *gate) reopen() {
	g.shut = false
	g.shutting = make(chan struct{})
	g.notify()
}
