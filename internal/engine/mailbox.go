package engine

import "sync"

// mailbox is a queue of functions for one loop. Putting never waits, so that
// the loop itself may put; and nothing is lost: what was put is taken, unless
// put has said no.
type mailbox struct {
	wake chan struct{} // one token: there is something to take

	mu     sync.Mutex // guards all below
	queue  []func()
	closed bool
}

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

// put adds a function. It reports false, and adds nothing, once the mailbox is
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

// take gives all that was put since the last time, in order.
func (m *mailbox) take() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	queue := m.queue
	m.queue = nil
	return queue
}

// close closes the mailbox, unless there is something left to take.
func (m *mailbox) close() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = len(m.queue) == 0
	return m.closed
}
