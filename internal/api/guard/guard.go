// SPDX-License-Identifier: Apache-2.0

// Package guard keeps web pages away from the API. A browser on the host, or in
// its network, sends the requests that any page makes it send: an empty POST to
// 127.0.0.1:2375 prunes containers, and a page whose own host name resolves to
// the daemon's address (DNS rebinding) can read the answers too. Only the
// headers that browsers add by themselves distinguish such requests from those
// of a client.
//
// It checks requests over TCP without TLS, whether the daemon or a socket unit
// opened the socket. A browser can't open a Unix socket, and proxies behind one
// pass on the headers of their own users. Over TLS the certificate proves the
// name, and the client's certificate the client. On Unix sockets and over TLS
// it checks only websockets, which browsers do not restrict to pages of the
// same site. It never offers CORS.
package guard

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"holdfast/internal/api/wire"
	"holdfast/internal/errs"
)

// Any in a list of Rules allows everything.
const Any = "*"

// Rules are the allowed names and origins, in addition to addresses, localhost
// and pages served from the daemon's own address.
type Rules struct {
	// Names are the daemon's own names, such as the host's.
	Names []string
	// Hosts are further host names in requests that are allowed.
	Hosts []string
	// Origins are web pages that may send requests: scheme://host or
	// scheme://host:port.
	Origins []string
}

// Guard is a handler that forwards the requests that it does not refuse.
type Guard struct {
	next http.Handler
	log  *slog.Logger
	now  atomic.Pointer[checked]

	mu     sync.Mutex
	logged map[string]bool // refusals that were logged already
}

// checked are Rules prepared for lookups.
type checked struct {
	anyHost, anyOrigin bool
	hosts              map[string]bool
	cross              *http.CrossOriginProtection
}

// New puts a guard in front of next. It panics on Rules that Check refuses.
func New(next http.Handler, r Rules, log *slog.Logger) *Guard {
	g := &Guard{next: next, log: log, logged: map[string]bool{}}
	if err := g.Set(r); err != nil {
		panic(err)
	}
	return g
}

// Set changes the rules. On an error they stay as they are.
func (g *Guard) Set(r Rules) error {
	c, err := check(r)
	if err == nil {
		g.now.Store(c)
	}
	return err
}

func check(r Rules) (*checked, error) {
	c := &checked{hosts: map[string]bool{"localhost": true}, cross: http.NewCrossOriginProtection()}
	for _, names := range [][]string{r.Names, r.Hosts} {
		for _, name := range names {
			if name == Any {
				c.anyHost = true
				continue
			}
			c.hosts[canonical(name)] = true
		}
	}
	for _, o := range r.Origins {
		if o == Any {
			c.anyOrigin = true
			continue
		}
		if err := c.cross.AddTrustedOrigin(o); err != nil {
			return nil, fmt.Errorf("invalid origin %q: %w", o, err)
		}
	}
	return c, nil
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (g *Guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rules := g.now.Load()
	plain := isPlainTCP(r)
	var err error
	if plain {
		err = rules.checkHost(r.Host)
	}
	if err == nil && (plain || isWebsocket(r)) {
		err = rules.checkOrigin(r)
		r = r.WithContext(wire.WithOriginChecked(r.Context()))
	}
	if err != nil {
		g.logRefusal(r, err)
		wire.Refuse(w, r, err)
		return
	}
	g.next.ServeHTTP(w, r)
}

// isPlainTCP reports whether a request came over TCP without TLS.
func isPlainTCP(r *http.Request) bool {
	addr, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	_, tcp := addr.(*net.TCPAddr)
	return tcp && r.TLS == nil
}

func isWebsocket(r *http.Request) bool {
	for _, v := range r.Header.Values("Upgrade") {
		for kind := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(kind), "websocket") {
				return true
			}
		}
	}
	return false
}

// checkHost checks the Host header. A request without one is allowed, because
// no browser sends it.
func (c *checked) checkHost(host string) error {
	if c.anyHost || host == "" {
		return nil
	}
	name, address := splitHost(host)
	if address || name != "" && c.hosts[canonical(name)] {
		return nil
	}
	if name == "" {
		return errs.Forbidden("the request's Host header %q is neither a name nor an address", host)
	}
	return errs.Forbidden("the request was sent to %q, which is not a name of this daemon: a web page may have pointed its own name at this address. "+
		"Use an address, localhost, this host's name or a name that the daemon listens on, or allow the name by "+
		`"api-allowed-hosts": [%q] in daemon.json or --api-allowed-host`, name, canonical(name))
}

// splitHost returns the name in a Host header without its port. address reports
// whether it is an IP literal. If the header can't be parsed both are zero.
func splitHost(host string) (name string, address bool) {
	if rest, ok := strings.CutPrefix(host, "["); ok {
		inner, port, ok := strings.Cut(rest, "]")
		if _, err := netip.ParseAddr(inner); !ok || err != nil || !isPort(port) {
			return "", false
		}
		return inner, true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return host, true
	}
	name, port, _ := strings.Cut(host, ":")
	if strings.Contains(port, ":") || canonical(name) == "" {
		return "", false
	}
	_, err := netip.ParseAddr(name)
	return name, err == nil
}

// isPort reports whether s is empty or a colon and digits.
func isPort(s string) bool {
	digits, ok := strings.CutPrefix(s, ":")
	return s == "" || ok && strings.Trim(digits, "0123456789") == ""
}

// checkOrigin checks which page made a browser send the request. Reads are
// checked like writes: a browser does not show a page the answer to a read, but
// some reads are expensive for the daemon, and a websocket starts with a GET.
func (c *checked) checkOrigin(r *http.Request) error {
	if c.anyOrigin {
		return nil
	}
	// Check does not check safe methods, so present the request as a POST.
	as := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: "/"}, Host: r.Host, Header: r.Header}
	if c.cross.Check(as) == nil {
		return nil
	}
	from := "another site"
	allow := "its origin"
	if o := r.Header.Get("Origin"); o != "" && o != "null" {
		from, allow = fmt.Sprintf("%q", o), fmt.Sprintf(`"api-allowed-origins": [%q]`, o)
	}
	return errs.Forbidden("the request was sent by a web page of %s, and pages of other sites may not use the API. "+
		"To allow the page, add %s to daemon.json or use --api-allowed-origin", from, allow)
}

// maxLogged bounds the refusals that are remembered, because a page can cause
// any number of different ones.
const maxLogged = 64

// logRefusal logs the first refusal for each pair of host and origin.
func (g *Guard) logRefusal(r *http.Request, err error) {
	what := r.Host + " " + r.Header.Get("Origin")
	g.mu.Lock()
	first := !g.logged[what] && len(g.logged) < maxLogged
	if first {
		g.logged[what] = true
	}
	g.mu.Unlock()
	if first {
		g.log.Warn("refused a request to the API", "method", r.Method, "path", r.URL.Path, "from", r.RemoteAddr, "reason", err)
	}
}
