// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"time"

	"holdfast/internal/api"
	"holdfast/internal/api/wire"
)

// gate stands in front of the API. It tracks the running requests, can hold
// back new ones, and can replace the handler. During a replacement no request
// is refused: it only waits.
type gate struct {
	mu      sync.Mutex
	handler http.Handler  // nil while the gate is shut
	opened  chan struct{} // closed when there is a handler again
	under   map[*request]struct{}
	changed chan struct{} // closed and replaced when a request or a connection ends
	// bridges is the number of connections that were taken over from HTTP and
	// are still copied by this process.
	bridges int
	conns   connections // the server's open connections
}

// request is a running request.
type request struct {
	what    string
	began   time.Time
	follows bool // see api.Follows
}

func newGate() *gate {
	return &gate{opened: make(chan struct{}), under: map[*request]struct{}{}, changed: make(chan struct{}), conns: newConnections(connLimits())}
}

// open passes requests to h, including those that have waited.
func (g *gate) open(h http.Handler) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.handler == nil {
		close(g.opened)
	}
	g.handler = h
}

// shut holds back requests from now on. It returns the handler that it removes.
func (g *gate) shut() http.Handler {
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.handler
	if h != nil {
		g.handler, g.opened = nil, make(chan struct{})
	}
	return h
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req := &request{what: r.Method + " " + r.URL.Path, began: time.Now(), follows: api.Follows(r)}
	g.mu.Lock()
	if g.conns.serve(r.Context()) {
		open := len(g.conns.all)
		g.mu.Unlock()
		w.Header().Set("Connection", "close")
		wire.WriteError(w, unavailable("too many clients: all of the %d connections that are open are in use; try again later", open))
		return
	}
	for g.handler == nil {
		opened := g.opened
		g.mu.Unlock()
		select {
		case <-opened:
		case <-r.Context().Done():
			// Without an answer, a client that is still there would see an empty 200.
			wire.WriteError(w, unavailable("the daemon is stopping: ask again"))
			return
		}
		g.mu.Lock()
	}
	h := g.handler
	g.under[req] = struct{}{}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.under, req)
		g.wake()
		g.mu.Unlock()
	}()
	h.ServeHTTP(w, r.WithContext(wire.WithBridges(r.Context(), g.bridge)))
}

// wake wakes the waiters after a change. The lock is held.
func (g *gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// bridge counts a connection that is copied outside of its request, until end
// is called.
func (g *gate) bridge() (end func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bridges++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.bridges--
		g.wake()
	})
}

// track is an http.Server's ConnState.
func (g *gate) track(c net.Conn, state http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch state {
	case http.StateNew:
		if cut := g.conns.add(c); cut != nil {
			// Accept the next connection only when this one's descriptor is
			// free. The goroutine that reads from it closes it.
			g.mu.Unlock()
			timer := time.NewTimer(cutTime)
			select {
			case <-cut.gone:
			case <-timer.C:
			}
			timer.Stop()
			g.mu.Lock()
		}
	case http.StateClosed, http.StateHijacked:
		g.conns.remove(c)
		g.wake()
	case http.StateActive:
		g.conns.spoke(c)
	case http.StateIdle:
		g.conns.idle(c)
	}
}

// closeSilent closes connections on which nothing was received yet.
func (g *gate) closeSilent() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns.closeSilent()
}

// waited returns the running requests that must end before a handover, and a
// channel that is closed when that may have changed.
func (g *gate) waited() ([]request, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []request
	for r := range g.under {
		if !r.follows {
			out = append(out, *r)
		}
	}
	slices.SortFunc(out, func(a, b request) int { return a.began.Compare(b.began) })
	return out, g.changed
}

// settled waits until no such request is running, at most for within. It
// returns those that still are.
func (g *gate) settled(within time.Duration) []request {
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		left, changed := g.waited()
		if len(left) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return left
		}
	}
}

// deserted waits until there is no request, bridge or open connection.
func (g *gate) deserted(ctx context.Context) {
	for {
		g.mu.Lock()
		n, changed := len(g.under)+g.bridges+len(g.conns.all), g.changed
		g.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// without waits until no request of a kind is running.
func (g *gate) without(kind func(*request) bool) {
	for {
		g.mu.Lock()
		some, changed := false, g.changed
		for r := range g.under {
			some = some || kind(r)
		}
		g.mu.Unlock()
		if !some {
			return
		}
		<-changed
	}
}

// forwarder forwards requests to the present daemon, which dial reaches, and
// asks the client to use a new connection next time.
func forwarder(dial func(context.Context) (net.Conn, error)) http.Handler {
	proxy := &httputil.ReverseProxy{
		Transport: &http.Transport{
			DisableKeepAlives: true, DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		},
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "holdfast"})
			r.Out.Host = r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode != http.StatusSwitchingProtocols {
				r.Header.Set("Connection", "close")
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			w.Header().Set("Connection", "close")
			wire.WriteError(w, unavailable("the daemon that took over does not answer: %v", err))
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The body of an upload is read while the answer is already being
		// written.
		_ = http.NewResponseController(w).EnableFullDuplex()
		proxy.ServeHTTP(w, r)
	})
}
