// SPDX-License-Identifier: Apache-2.0

package engine

// loop runs the functions of an actor, one after the other. What takes time runs in
// another goroutine, which reports back by post.
type loop struct {
	mail   *mailbox
	quit   chan struct{} // closed, by the loop, when the container is removed
	parked []func()      // inputs that wait until the phase changes; only the loop accesses it
}

func newLoop() *loop { return &loop{mail: newMailbox(), quit: make(chan struct{})} }

// run runs the functions of mail until the container is removed and mail is
// empty.
func (l *loop) run() {
	for {
		for _, fn := range l.mail.take() {
			fn()
		}
		select {
		case <-l.quit:
			if l.mail.close() {
				return
			}
		default:
			<-l.mail.wake
		}
	}
}

// post passes a function to the loop and returns without waiting for it. It
// returns false, and does nothing, once the container is removed.
func (l *loop) post(fn func()) bool { return l.mail.put(fn) }

// removed reports whether the container is removed, in the loop.
func (l *loop) removed() bool {
	select {
	case <-l.quit:
		return true
	default:
		return false
	}
}

// await runs a function in the loop and waits for it. It returns at once if the
// container is removed.
func (l *loop) await(fn func()) {
	ran := make(chan struct{})
	if l.post(func() { defer close(ran); fn() }) {
		<-ran
	}
}

// unpark retries the parked inputs.
func (l *loop) unpark() {
	parked := l.parked
	l.parked = nil
	for _, again := range parked {
		again()
	}
}
