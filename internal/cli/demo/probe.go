// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	probeEvery   = 10 * time.Millisecond
	probeTimeout = 2 * time.Second
)

// request is one request to the published port.
type request struct {
	start, end time.Time
	err        error  // nil if it was answered
	started    string // start time that the program in the container reports
}

// count sums up requests.
type count struct{ answered, failed int }

func (c *count) add(r request) {
	if r.err != nil {
		c.failed++
	} else {
		c.answered++
	}
}

// probe requests a URL at a steady rate, each time over a new connection.
type probe struct {
	mu       sync.Mutex
	requests []request
	stopped  chan struct{}
}

// startProbe sends requests until ctx ends. A request that this cancels is not
// counted.
func startProbe(ctx context.Context, url string) *probe {
	p := &probe{stopped: make(chan struct{})}
	web := &http.Client{
		Timeout:   probeTimeout,
		Transport: &http.Transport{DisableKeepAlives: true},
	}
	go func() {
		defer close(p.stopped)
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			r := ask(ctx, web, url)
			if ctx.Err() != nil {
				return
			}
			p.mu.Lock()
			p.requests = append(p.requests, r)
			p.mu.Unlock()
		}
	}()
	return p
}

func ask(ctx context.Context, web *http.Client, url string) request {
	r := request{start: time.Now()}
	r.started, r.err = askOnce(ctx, web, url)
	r.end = time.Now()
	return r
}

func askOnce(ctx context.Context, web *http.Client, url string) (started string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := web.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct{ Started string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return "", fmt.Errorf("the answer is not from the demo's program: %w", err)
	}
	return answer.Started, nil
}

// since counts the requests that were sent at or after a time and have ended.
func (p *probe) since(from time.Time) count {
	p.mu.Lock()
	defer p.mu.Unlock()
	var c count
	for _, r := range p.requests {
		if !r.start.Before(from) {
			c.add(r)
		}
	}
	return c
}

// results returns all requests. The probe's context must have ended.
func (p *probe) results() []request {
	<-p.stopped
	return p.requests
}
