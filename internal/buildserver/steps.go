// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"sync"
	"time"
)

// stepsEnd bounds the wait for RUN steps whose builds were cancelled.
const stepsEnd = 10 * time.Second

// steps counts the RUN steps that have anything on the host.
type steps struct {
	mu    sync.Mutex
	n     int
	ended chan struct{} // closed when n becomes 0; nil while nobody waits
}

func (s *steps) add(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n += by
	if s.n == 0 && s.ended != nil {
		close(s.ended)
		s.ended = nil
	}
}

// wait waits until there is no step, for a time.
func (s *steps) wait(within time.Duration) {
	s.mu.Lock()
	if s.n == 0 {
		s.mu.Unlock()
		return
	}
	if s.ended == nil {
		s.ended = make(chan struct{})
	}
	ended := s.ended
	s.mu.Unlock()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
}

// solves knows whether anything is being built.
type solves struct {
	mu    sync.Mutex
	n     int
	ended time.Time // of the last one
}

func (s *solves) begin() (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.n--
		s.ended = time.Now()
	}
}

// settleWithin bounds how long BuildKit may take to let go of what a build has used. It
// does so some time after the build's client has got the result.
const settleWithin = 5 * time.Second

// settling reports whether a build has ended recently, and none runs.
func (s *solves) settling() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n == 0 && time.Since(s.ended) < settleWithin
}
