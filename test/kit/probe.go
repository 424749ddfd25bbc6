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

// interval is how often a Prober asks.
const interval = 10 * time.Millisecond

// Prober asks a URL every 10 ms, each time on a connection of its own, and
// writes down what fails.
type Prober struct {
	url    string
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	report  Report
	changed chan struct{} // closed, and made anew, with each result
}

// Report is what a Prober saw.
type Report struct {
	Asked    int
	Answered int
	Slowest  time.Duration // of those that were answered
	Failures []Failure
}

// Failure is a request without the answer 200.
type Failure struct {
	At  time.Time // when it was asked
	Err error
}

// String is a line and the first failures.
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

// Probe starts to ask a URL. The test's end stops it, if nobody did before.
func Probe(t testing.TB, url string) *Prober {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &Prober{url: url, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	go p.run(ctx)
	t.Cleanup(func() { p.Stop() })
	return p
}

// WaitAnswer waits for the first answer. Failures before it are forgotten: a
// server that is just starting may refuse.
func (p *Prober) WaitAnswer(t testing.TB) {
	t.Helper()
	p.Wait(t, func(r Report) bool { return r.Answered > 0 })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Asked -= len(p.report.Failures)
	p.report.Failures = nil
}

// Wait waits until what was seen is enough.
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
			t.Fatalf("%s: waited in vain: %s", p.url, p.Report())
		}
	}
}

// Report is what was seen so far.
func (p *Prober) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.report
	r.Failures = append([]Failure(nil), r.Failures...)
	return r
}

// Stop ends the asking, waits for the requests under way, and reports.
func (p *Prober) Stop() Report {
	p.cancel()
	<-p.done
	return p.Report()
}

func (p *Prober) run(ctx context.Context) {
	defer close(p.done)
	// Requests outlast the cancellation: one that was asked is to be answered.
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var under sync.WaitGroup
	defer under.Wait()
	// A server that hangs must not cost the test process its descriptors.
	slots := make(chan struct{}, 500)
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
			p.note(time.Now(), fmt.Errorf("%d requests wait for an answer", cap(slots)))
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
