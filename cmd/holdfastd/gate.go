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

// gate stands in front of the API. It knows the requests that are under way,
// can hold back new ones, and can put another handler in the place of the one
// that answers: no request is refused because of that, it only waits.
type gate struct {
	mu      sync.Mutex
	handler http.Handler  // nil: closed
	opened  chan struct{} // closed when there is a handler again
	under   map[*request]struct{}
	changed chan struct{} // closed and made anew when a request or a connection ends
	// bridges are connections that were taken over from HTTP and are still
	// copied by this process.
	bridges int
	conns   map[net.Conn]bool // open ones of the server; false: no request has come yet
}

// request is one that is under way.
type request struct {
	what    string
	began   time.Time
	follows bool // see api.Follows
}

func newGate() *gate {
	return &gate{opened: make(chan struct{}), under: map[*request]struct{}{}, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
}

// open lets requests pass to h, those that have waited too.
func (g *gate) open(h http.Handler) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.handler == nil {
		close(g.opened)
	}
	g.handler = h
}

// shut holds back requests from now on, and gives the handler that it takes
// away.
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
	for g.handler == nil {
		opened := g.opened
		g.mu.Unlock()
		select {
		case <-opened:
		case <-r.Context().Done():
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
		g.tell()
		g.mu.Unlock()
	}()
	h.ServeHTTP(w, r.WithContext(wire.WithBridges(r.Context(), g.bridge)))
}

// tell wakes who waits for a change, under the lock.
func (g *gate) tell() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// bridge counts a connection that is copied outside of its request.
func (g *gate) bridge() (end func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bridges++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.bridges--
		g.tell()
	})
}

// track is an http.Server's ConnState.
func (g *gate) track(c net.Conn, state http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch state {
	case http.StateNew:
		g.conns[c] = false
	case http.StateClosed, http.StateHijacked:
		delete(g.conns, c)
		g.tell()
	default:
		g.conns[c] = true
	}
}

// closeSilent closes connections on which no request has come yet.
func (g *gate) closeSilent() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c, spoke := range g.conns {
		if !spoke {
			c.Close()
		}
	}
}

// waited are the requests under way that must end before a handover, and the
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

// settled waits until no request that must end is under way, at most so long.
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

// deserted waits until nobody is served any more: no request, no bridge, no
// open connection.
func (g *gate) deserted(ctx context.Context) {
	for {
		g.mu.Lock()
		n, changed := len(g.under)+g.bridges+len(g.conns), g.changed
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

// without waits until no request of a kind is under way.
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

// forwarder answers with what the present daemon answers, whom dial reaches,
// and asks the client to come back on another connection.
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
		// Uploads are read while the answer is written already.
		_ = http.NewResponseController(w).EnableFullDuplex()
		proxy.ServeHTTP(w, r)
	})
}
