// SPDX-License-Identifier: Apache-2.0

package engine

import "sync"

// mailbox is an unbounded queue of functions for one loop. put never blocks, so that
// the loop may call it, too. Every function for which put returned true is taken.
type mailbox struct {
	wake chan struct{} // has one token if the queue may be non-empty

	mu     sync.Mutex // guards all below
	queue  []func()
	closed bool
}

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

// put adds a function. It returns false, and adds nothing, once the mailbox is
// closed.
func (m *mailbox) put(fn func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.queue = append(m.queue, fn)
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns the functions that were put since the last call, in order.
func (m *mailbox) take() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	queue := m.queue
	m.queue = nil
	return queue
}

// close closes the mailbox if it is empty, and reports whether it did.
func (m *mailbox) close() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = len(m.queue) == 0
	return m.closed
}
