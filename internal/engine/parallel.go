package engine

import (
	"sync"
	"sync/atomic"
)

// inParallel calls fn for 0 to n-1, so many at once, and returns when all are
// done. A worker does one after the other: what a goroutine costs, most of it
// the growth of its stack, is not paid for each.
func inParallel(n, workers int, fn func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, workers) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				fn(i)
			}
		})
	}
	wg.Wait()
}
