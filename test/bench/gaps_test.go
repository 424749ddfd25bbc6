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

// gap asks again and again, on a new connection each time, and notes the
// longest time from one answer to the next.
type gap struct {
	stop, done, first chan struct{}
	max               time.Duration
}

// every is the pause between an answer, or a refusal, and the next question.
const every = 2 * time.Millisecond

func watchGap(ask func() error) *gap {
	g := &gap{stop: make(chan struct{}), done: make(chan struct{}), first: make(chan struct{})}
	go func() {
		defer close(g.done)
		var last time.Time // of the last answer
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

// begun waits for the first answer.
func (g *gap) begun(t testing.TB, who string) {
	t.Helper()
	select {
	case <-g.first:
	case <-time.After(patience):
		t.Errorf("%s does not answer", who)
	}
}

// end is called after something else has had an answer.
func (g *gap) end() time.Duration {
	close(g.stop)
	<-g.done
	return g.max
}

// pinger asks the API whether it is there. A question waits as long as the
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

// visitor asks a published port. Who has waited for a quarter of a second asks
// again: a packet that was lost would be sent again only after a second.
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

// measureGaps takes the daemon of n containers away in every way and watches
// the API and the port of one container meanwhile.
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
			// A connection that is kept open would keep the old daemon.
			x.api.http.CloseIdleConnections()
			a, p := watchGap(pinger(x.socket())), watchGap(visitor(x.one))
			a.begun(t, x.name())
			p.begun(t, "a published port of "+x.name())
			way.does()
			if err := x.api.waitUp(); err != nil {
				t.Error(err)
			}
			// An effect is answered when every container was looked at.
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
