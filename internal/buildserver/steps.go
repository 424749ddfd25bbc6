// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"sync"
	"time"

	"github.com/moby/buildkit/executor"
	resources "github.com/moby/buildkit/executor/resources/types"
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

// countedExecutor counts the steps that an executor runs.
type countedExecutor struct {
	executor.Executor
	steps *steps
}

func (e countedExecutor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resources.Recorder, error) {
	e.steps.add(1)
	defer e.steps.add(-1)
	return e.Executor.Run(ctx, id, root, mounts, process, started)
}
