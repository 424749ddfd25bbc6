// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"holdfast/internal/api/wire"
)

var (
	tcp = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2375}
	uds = &net.UnixAddr{Name: "/run/holdfast/holdfast.sock", Net: "unix"}
)

// ask sends a request with a Host and further headers, and returns its status
// and the message of a refusal.
func ask(t testing.TB, g http.Handler, local net.Addr, method, host string, secure bool, header ...string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(method, "/containers/prune", nil)
	r.Host = host
	r.TLS = nil
	if secure {
		r.TLS = &tls.ConnectionState{}
	}
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	for name := range w.Header() {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("the answer offers CORS: %s", name)
		}
	}
	var e struct{ Message string }
	_ = json.Unmarshal(w.Body.Bytes(), &e)
	return w.Code, e.Message
}

func behind(r Rules) *Guard {
	return New(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }), r, slog.New(slog.DiscardHandler))
}

func TestForeignHostNamesAreRefusedOnPlainTCP(t *testing.T) {
	g := behind(Rules{Names: []string{"build01", "Docker.Example.com"}, Hosts: []string{"allowed.example"}})
	for _, host := range []string{
		"127.0.0.1:2375", "127.0.0.1", "[::1]:2375", "[::1]", "[fe80::1%eth0]:2375", "192.0.2.7:1", "localhost:2375", "LOCALHOST", "localhost.:2375",
		"build01:2375", "docker.example.com:2375", "allowed.example", "ALLOWED.example.:1", "",
	} {
		if code, why := ask(t, g, tcp, "GET", host, false); code != http.StatusNoContent {
			t.Errorf("Host %q is refused: %d %s", host, code, why)
		}
	}
	for _, host := range []string{
		"evil.example:2375", "evil.example", "localhost.evil.example", "build01.evil.example:2375", "127.0.0.1.evil.example", "notlocalhost", "2130706433", "0x7f.1",
		"[evil.example]:2375", "[::1", "[::1]x", ":2375", ".", "a:b:c", "localhost:1:2",
	} {
		code, why := ask(t, g, tcp, "GET", host, false)
		if code != http.StatusForbidden || why == "" {
			t.Errorf("Host %q is answered with %d %q", host, code, why)
		}
	}
	if _, why := ask(t, g, tcp, "GET", "evil.example:2375", false); !strings.Contains(why, `"api-allowed-hosts": ["evil.example"]`) {
		t.Errorf("the refusal does not say what to do: %s", why)
	}
	if err := g.Set(Rules{Hosts: []string{Any}}); err != nil {
		t.Fatal(err)
	}
	if code, _ := ask(t, g, tcp, "GET", "evil.example", false); code != http.StatusNoContent {
		t.Errorf("* does not allow every name: %d", code)
	}
}

func TestPagesOfOtherSitesAreRefusedOnPlainTCP(t *testing.T) {
	g := behind(Rules{Origins: []string{"https://ui.example:8443"}})
	const host = "127.0.0.1:2375"
	for _, c := range []struct {
		name   string
		method string
		header []string
		want   int
	}{
		{"a client", "POST", nil, 204},
		{"an address that was typed in", "GET", []string{"Sec-Fetch-Site", "none"}, 204},
		{"a page of its own", "POST", []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:2375"}, 204},
		{"a page of its own in an old browser", "POST", []string{"Origin", "http://127.0.0.1:2375"}, 204},
		{"a form of another site", "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, 403},
		{"the same in an old browser, or over plain HTTP", "POST", []string{"Origin", "https://evil.example"}, 403},
		{"a page that hides where it is from", "POST", []string{"Origin", "null", "Referrer-Policy", "no-referrer"}, 403},
		{"a form without origin and referer", "POST", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"a container's page on another port", "POST", []string{"Sec-Fetch-Site", "same-site", "Origin", "http://127.0.0.1:8080"}, 403},
		{"its request to delete", "DELETE", []string{"Origin", "http://127.0.0.1:8080"}, 403},
		{"a picture of another site", "GET", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"a websocket of another site", "GET", []string{"Origin", "https://evil.example", "Upgrade", "websocket", "Connection", "Upgrade"}, 403},
		{"the question whether CORS is offered", "OPTIONS", []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "DELETE"}, 403},
		{"an allowed page", "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://ui.example:8443"}, 204},
		{"another port of its host", "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://ui.example"}, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, why := ask(t, g, tcp, c.method, host, false, c.header...)
			if code != c.want || code == 403 && !strings.Contains(why, "api-allowed-origin") {
				t.Errorf("got %d %q, want %d", code, why, c.want)
			}
		})
	}
	if err := g.Set(Rules{Origins: []string{Any}}); err != nil {
		t.Fatal(err)
	}
	if code, _ := ask(t, g, tcp, "POST", host, false, "Origin", "https://evil.example"); code != http.StatusNoContent {
		t.Errorf("* does not allow every origin: %d", code)
	}
	if g.Set(Rules{Origins: []string{"https://ui.example/path"}}) == nil {
		t.Error("an origin with a path is taken")
	}
}

// Proxies in front of the Unix socket pass on the headers of their users'
// browsers.
func TestUnixSocketsAndTLSAskOnlyOfWebsocketsWhereTheyComeFrom(t *testing.T) {
	g := behind(Rules{})
	for name, c := range map[string]struct {
		local  net.Addr
		secure bool
	}{"unix": {uds, false}, "tls": {tcp, true}} {
		if code, _ := ask(t, g, c.local, "POST", "evil.example", c.secure, "Origin", "https://evil2.example", "Sec-Fetch-Site", "cross-site"); code != http.StatusNoContent {
			t.Errorf("%s: a request is answered with %d", name, code)
		}
		if code, _ := ask(t, g, c.local, "GET", "d", c.secure, "Origin", "https://evil.example", "Upgrade", "WebSocket"); code != http.StatusForbidden {
			t.Errorf("%s: a websocket of another site is answered with %d", name, code)
		}
		if code, _ := ask(t, g, c.local, "GET", "d", c.secure, "Origin", "https://d", "Upgrade", "websocket"); code != http.StatusNoContent {
			t.Errorf("%s: a websocket of the same site is answered with %d", name, code)
		}
	}
}

func TestHandlersHearThatTheOriginWasJudged(t *testing.T) {
	g := New(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !wire.OriginChecked(r.Context()) {
			w.WriteHeader(http.StatusTeapot)
		}
	}), Rules{}, slog.New(slog.DiscardHandler))
	if code, _ := ask(t, g, tcp, "GET", "localhost", false); code != http.StatusOK {
		t.Error("over TCP the request is not marked as checked")
	}
	if code, _ := ask(t, g, uds, "GET", "localhost", false); code != http.StatusTeapot {
		t.Error("over a Unix socket the request is marked as checked, but was not")
	}
}

// FuzzHostAndOrigin: whatever the headers, only an allowed name or an address
// passes, and only pages of the daemon's own origin.
func FuzzHostAndOrigin(f *testing.F) {
	for _, s := range [][4]string{
		{"POST", "127.0.0.1:2375", "", ""}, {"GET", "localhost", "http://localhost", "same-origin"}, {"POST", "[::1]:1", "null", "cross-site"},
		{"DELETE", "evil.example", "https://evil.example", ""}, {"GET", "allowed.example.", "http://allowed.example.", "none"}, {"GET", "[::1", "", ""},
		{"POST", "localhost:1:2", "http://%", "x"}, {"POST", "127.0.0.1", "http://127.0.0.1:80", ""}, {"PUT", "1.2.3.4%eth0", "", ""},
		{"GET", "[fe80::1%.]:1", "", ""}, {"POST", "[fe80::1%eth0]", "http://[fe80::1%25eth0]", ""}, {"GET", "fe80::1%a]", "", ""}, {"GET", "::1", "http://::1", ""},
	} {
		f.Add(s[0], s[1], s[2], s[3])
	}
	g := behind(Rules{Hosts: []string{"allowed.example"}})
	f.Fuzz(func(t *testing.T, method, host, origin, site string) {
		r := &http.Request{Method: method, Host: host, URL: httptest.NewRequest("GET", "/", nil).URL, Header: http.Header{}}
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		if site != "" {
			r.Header.Set("Sec-Fetch-Site", site)
		}
		r = r.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, tcp))
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if w.Code == http.StatusForbidden {
			return
		}
		if w.Code != http.StatusNoContent {
			t.Fatalf("answered with %d", w.Code)
		}
		name, bracketed := strings.CutPrefix(strings.ToLower(host), "[")
		if bracketed {
			name, _, _ = strings.Cut(name, "]")
		} else if _, err := netip.ParseAddr(name); err != nil {
			name, _, _ = strings.Cut(name, ":")
		}
		plain := strings.TrimSuffix(name, ".")
		if _, err := netip.ParseAddr(name); err != nil && host != "" && (bracketed || plain != "localhost" && plain != "allowed.example") {
			t.Errorf("Host %q passes", host)
		}
		if site != "" && site != "same-origin" && site != "none" {
			t.Errorf("Sec-Fetch-Site %q passes", site)
		}
		if of, err := url.Parse(origin); site == "" && origin != "" && (err != nil || of.Host != host) {
			t.Errorf("Origin %q passes for Host %q", origin, host)
		}
	})
}
