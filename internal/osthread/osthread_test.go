// SPDX-License-Identifier: Apache-2.0

package osthread

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRunNeverUsesTheMainThread lets goroutines be on every thread, the main one
// too, as they start functions on threads of their own.
func TestRunNeverUsesTheMainThread(t *testing.T) {
	for name, run := range map[string]func(func() error) error{"Run": Run, "RunInNetns": RunInNetns} {
		var wg sync.WaitGroup
		for range 4 * runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				for range 200 {
					if err := run(func() error {
						if unix.Gettid() == os.Getpid() {
							return errors.New("on the main thread")
						}
						return nil
					}); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

// TestRunEndsItsThread: what the function changed of the thread ends with it.
func TestRunEndsItsThread(t *testing.T) {
	var tid int
	if err := Run(func() error {
		tid = unix.Gettid()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// The answer comes before the thread ends.
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	enough := time.After(10 * time.Second)
	for !errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH) {
		select {
		case <-again.C:
		case <-enough:
			t.Fatalf("thread %d is still there", tid)
		}
	}
}

func TestRunAnswersWhenItsFunctionLeaves(t *testing.T) {
	want := errors.New("refused")
	if err := Run(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error %v", err)
	}
	if err := Run(func() error { runtime.Goexit(); return nil }); !errors.Is(err, errUnfinished) {
		t.Errorf("error %v after Goexit", err)
	}
}
