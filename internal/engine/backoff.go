// SPDX-License-Identifier: Apache-2.0

package engine

import "time"

// The wait after the first failed attempt to reach a shim or to start one, and the
// longest wait.
const (
	retryFirst = 5 * time.Millisecond
	retryMost  = 30 * time.Second
)

// backoff is the wait between attempts, which doubles up to a limit.
type backoff struct{ next, most time.Duration }

// wait waits until the next attempt. It returns false if there must be none,
// because the container is removed or the daemon ends.
func (b *backoff) wait(a *actor) bool {
	timer := time.NewTimer(b.next)
	defer timer.Stop()
	b.next = min(2*b.next, b.most)
	select {
	case <-timer.C:
		return true
	case <-a.quit:
	case <-a.e.closing:
	}
	return false
}
