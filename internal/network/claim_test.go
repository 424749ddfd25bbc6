// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
)

func TestClaimIsHeldByOneEngineAtATime(t *testing.T) {
	release, err := claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := claim(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("who waited no longer got %v", err)
	}
	const others = 8
	var holders atomic.Int32
	done := make(chan error, others)
	for range others {
		go func() {
			release, err := claim(t.Context())
			if err == nil {
				if holders.Add(1) != 1 {
					err = errors.New("two hold the claim")
				}
				runtime.Gosched()
				holders.Add(-1)
				release()
			}
			done <- err
		}()
	}
	release()
	for range others {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
