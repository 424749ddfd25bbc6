// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// interval is the time between two requests of a Prober.
const interval = 10 * time.Millisecond

// maxWaiting bounds the requests of a Prober that wait for their answers. It is below
// the backlog of busybox's httpd, which is 9: the kernel drops the connections that a
// full backlog does not take, and a client that believes in such a connection gets no
// answer, or a reset.
const maxWaiting = 8

// Prober requests a URL every 10 ms, each time on a new connection, and records
// failures: refused or broken connections, and requests without an answer
// within 10 seconds.
type Prober struct {
	url    string
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	report  Report
	changed chan struct{} // closed and replaced with each result
}

// Report is the result of a Prober.
type Report struct {
	Asked    int
	Answered int
	Slowest  time.Duration // of the answered requests
	Failures []Failure
}

// Failure is a request that was not answered with 200.
type Failure struct {
	At  time.Time // when the request was sent
	Err error
}

// String is one line, followed by the first failures.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests, %d answered, %d failed, slowest %s", r.Asked, r.Answered, len(r.Failures), r.Slowest.Round(time.Microsecond))
	for i, f := range r.Failures {
		if i == 5 {
			b.WriteString("\n…")
			break
		}
		fmt.Fprintf(&b, "\n%s %v", f.At.Format("15:04:05.000"), f.Err)
	}
	return b.String()
}

// Probe starts to request a URL. The Prober is stopped by Stop or at the test's
// end.
func Probe(t testing.TB, url string) *Prober {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &Prober{url: url, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	go p.run(ctx)
	t.Cleanup(func() { p.Stop() })
	return p
}

// WaitAnswer waits for the first answer. Failures before it are forgotten,
// because a server that is just starting may refuse.
func (p *Prober) WaitAnswer(t testing.TB) {
	t.Helper()
	p.Wait(t, func(r Report) bool { return r.Answered > 0 })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Asked -= len(p.report.Failures)
	p.report.Failures = nil
}

// Wait waits until enough returns true for the report so far.
func (p *Prober) Wait(t testing.TB, enough func(Report) bool) {
	t.Helper()
	patient := time.After(patience)
	for {
		p.mu.Lock()
		ok, changed := enough(p.report), p.changed
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-patient:
			t.Fatalf("%s: the condition was not met: %s", p.url, p.Report())
		}
	}
}

// Report returns the results so far.
func (p *Prober) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.report
	r.Failures = append([]Failure(nil), r.Failures...)
	return r
}

// Stop stops sending requests, waits for the running ones, and returns the
// report.
func (p *Prober) Stop() Report {
	p.cancel()
	<-p.done
	return p.Report()
}

func (p *Prober) run(ctx context.Context) {
	defer close(p.done)
	// Requests outlive the cancellation, because each must be answered. A busy
	// server may drop the first packets of a connection, which the kernel
	// resends after 1, 3, 7 and 15 seconds.
	client := &http.Client{Timeout: 40 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var under sync.WaitGroup
	defer under.Wait()
	// On a busy machine a server may answer more slowly than requests are due.
	// Then requests are sent only as fast as they are answered: in a growing
	// queue, late answers would look like lost ones.
	slots := make(chan struct{}, maxWaiting)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case slots <- struct{}{}:
		default:
			continue
		}
		under.Go(func() {
			at := time.Now()
			p.note(at, ask(client, p.url))
			<-slots
		})
	}
}

func ask(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

func (p *Prober) note(at time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
	p.report.Asked++
	if err != nil {
		p.report.Failures = append(p.report.Failures, Failure{at, err})
		return
	}
	p.report.Answered++
	p.report.Slowest = max(p.report.Slowest, time.Since(at))
}
