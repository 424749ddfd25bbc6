// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// counting reads a container whose n-th sample has n seconds of CPU time.
func counting(n *atomic.Uint64) ReadFunc {
	return func(context.Context) (container.StatsResponse, error) {
		s := container.StatsResponse{ID: "a", Name: "/b", Read: time.Now()}
		s.CPUStats.CPUUsage.TotalUsage = n.Add(1) * uint64(time.Second)
		return s, nil
	}
}

var errDone = errors.New("enough")

// take returns the first n samples of a stream.
func take(ctx context.Context, c *Collector, n int) ([]container.StatsResponse, error) {
	var got []container.StatsResponse
	err := c.Stream(ctx, func(s container.StatsResponse) error {
		got = append(got, s)
		if len(got) == n {
			return errDone
		}
		return nil
	})
	return got, err
}

func TestStreamCarriesThePreviousSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Uint64
		c := NewCollector(counting(&n))
		start := time.Now()
		got, err := take(t.Context(), c, 3)
		if err != errDone || len(got) != 3 {
			t.Fatalf("%d samples, %v", len(got), err)
		}
		if d := time.Since(start); d != 2*Interval {
			t.Errorf("three samples took %v", d)
		}
		if !got[0].PreRead.IsZero() || got[0].PreCPUStats.CPUUsage.TotalUsage != 0 {
			t.Errorf("the first sample has one before it: %+v", got[0])
		}
		for i := 1; i < 3; i++ {
			if got[i].PreRead != got[i-1].Read || got[i].PreCPUStats.CPUUsage.TotalUsage != got[i-1].CPUStats.CPUUsage.TotalUsage {
				t.Errorf("sample %d: %+v", i, got[i])
			}
		}
	})
}

func TestManyClientsCostOneSampling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Uint64
		c := NewCollector(counting(&n))
		done := make(chan error, 10)
		for range 10 {
			go func() {
				got, err := take(t.Context(), c, 4)
				if err == errDone && len(got) == 4 {
					err = nil
				}
				done <- err
			}()
		}
		for range 10 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n.Load() > 5 {
			t.Errorf("%d samples were read for ten clients of four each", n.Load())
		}
		before := n.Load()
		synctest.Wait()
		<-time.After(10 * Interval)
		if n.Load() != before {
			t.Error("sampling goes on without a client")
		}
	})
}

func TestOneShotAndOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Uint64
		c := NewCollector(counting(&n))
		start := time.Now()
		s, err := c.OneShot(t.Context())
		if err != nil || !s.PreRead.IsZero() || time.Since(start) != 0 {
			t.Errorf("OneShot: %+v, %v after %v", s, err, time.Since(start))
		}
		s, err = c.Once(t.Context())
		if err != nil || s.PreRead.IsZero() || s.Read.Sub(s.PreRead) != Interval || s.PreCPUStats.CPUUsage.TotalUsage == 0 {
			t.Errorf("Once: %+v, %v", s, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), Interval/2)
		defer cancel()
		if _, err := c.Once(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Once of an impatient client: %v", err)
		}
	})
}

func TestStoppedContainerHasEmptySamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCollector(func(context.Context) (container.StatsResponse, error) {
			return container.StatsResponse{ID: "a", Name: "/b"}, fmt.Errorf("stopped: %w", errdefs.ErrNotFound)
		})
		start := time.Now()
		s, err := c.Once(t.Context())
		if err != nil || s.ID != "a" || s.Name != "/b" || !s.Read.IsZero() || time.Since(start) != 0 {
			t.Errorf("Once: %+v, %v", s, err)
		}
		got, err := take(t.Context(), c, 2)
		if err != errDone || !got[1].PreRead.IsZero() {
			t.Errorf("Stream: %+v, %v", got, err)
		}
	})
}

func TestStreamsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Uint64
		c := NewCollector(counting(&n))
		ended := make(chan error)
		go func() {
			_, err := take(t.Context(), c, 1000)
			ended <- err
		}()
		<-time.After(Interval / 2)
		c.Close()
		c.Close()
		if err := <-ended; err != nil {
			t.Errorf("after Close: %v", err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		c = NewCollector(counting(&n))
		go func() {
			_, err := take(ctx, c, 1000)
			ended <- err
		}()
		<-time.After(Interval / 2)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("after cancel: %v", err)
		}

		broken := errors.New("broken")
		c = NewCollector(func(context.Context) (container.StatsResponse, error) { return container.StatsResponse{}, broken })
		if _, err := take(t.Context(), c, 1); !errors.Is(err, broken) {
			t.Errorf("of a failing read: %v", err)
		}
	})
}

func TestSlowClientGetsTheLatestSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Uint64
		c := NewCollector(counting(&n))
		var got []uint64
		err := c.Stream(t.Context(), func(s container.StatsResponse) error {
			got = append(got, s.CPUStats.CPUUsage.TotalUsage/uint64(time.Second))
			if len(got) == 2 {
				return errDone
			}
			<-time.After(5*Interval + Interval/2)
			return nil
		})
		if err != errDone || got[0] != 1 || got[1] != 6 {
			t.Errorf("%v, %v", got, err)
		}
	})
}
