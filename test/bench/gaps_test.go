// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// gap calls a function again and again, on a new connection each time, and
// records the longest time between two successful calls.
type gap struct {
	stop, done, first chan struct{}
	max               time.Duration
}

// every is the pause between the end of one call and the next call.
const every = 2 * time.Millisecond

func watchGap(ask func() error) *gap {
	g := &gap{stop: make(chan struct{}), done: make(chan struct{}), first: make(chan struct{})}
	go func() {
		defer close(g.done)
		var last time.Time // time of the last successful call
		tick := time.NewTimer(every)
		for {
			if ask() == nil {
				now := time.Now()
				if last.IsZero() {
					close(g.first)
				} else {
					g.max = max(g.max, now.Sub(last))
				}
				last = now
			}
			tick.Reset(every)
			select {
			case <-g.stop:
				if !last.IsZero() {
					g.max = max(g.max, time.Since(last))
				}
				return
			case <-tick.C:
			}
		}
	}()
	return g
}

// begun waits for the first successful call.
func (g *gap) begun(t testing.TB, who string) {
	t.Helper()
	select {
	case <-g.first:
	case <-time.After(patience):
		t.Errorf("%s does not answer", who)
	}
}

// end stops the calls. The caller must have had another answer from the engine
// before.
func (g *gap) end() time.Duration {
	close(g.stop)
	<-g.done
	return g.max
}

// pinger requests /_ping from the API. A request waits for as long as the
// engine lets it.
func pinger(socket string) func() error {
	c := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	return func() error { return get(c, "http://engine/_ping") }
}

// visitor requests a page from a published port. The timeout is a quarter of a
// second: TCP would retransmit a lost packet only after a second.
func visitor(port string) func() error {
	c := &http.Client{Timeout: 250 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	return func() error { return get(c, "http://127.0.0.1:"+port+"/index.html") }
}

func get(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// measureGaps restarts, kills and upgrades the daemon of n containers.
// Meanwhile it watches the API and the port of one container.
func measureGaps(t *testing.T, s scale, table *table, x *subject, n int) {
	for _, way := range []struct {
		name string
		does func()
	}{
		{"restart", func() { x.stop(); x.start() }},
		{"crash", func() { x.kill(); x.start() }},
		{"upgrade", x.upgrade},
	} {
		if way.name == "upgrade" && !x.upgrades() {
			continue
		}
		var api, port []time.Duration
		for round := range s.few {
			if s.budget.done(round) {
				break
			}
			// An idle connection would delay the end of the old daemon.
			x.api.http.CloseIdleConnections()
			a, p := watchGap(pinger(x.socket())), watchGap(visitor(x.one))
			a.begun(t, x.name())
			p.begun(t, "a published port of "+x.name())
			way.does()
			if err := x.waitUp(); err != nil {
				t.Error(err)
			}
			// An answer to this request means that every container has been
			// examined.
			x.api.must(t, "POST", "/containers/"+x.ids[0]+"/kill?signal=CONT", nil, nil)
			api = append(api, a.end())
			port = append(port, p.end())
			if t.Failed() {
				return
			}
		}
		table.setAll(fmt.Sprintf(rowGapAPI, way.name, n), x.name(), api)
		table.setAll(fmt.Sprintf(rowGapPort, way.name, n), x.name(), port)
	}
}
