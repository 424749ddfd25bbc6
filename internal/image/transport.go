// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"golang.org/x/net/http/httpproxy"
)

// Bounds on a registry's answers. Blobs are bounded by their descriptors.
const (
	// maxHeaders bounds the headers of an answer, in bytes.
	maxHeaders = 256 << 10
	// maxToken bounds the answer of a token server, in bytes, and tokenWait the
	// time it takes.
	maxToken  = 1 << 20
	tokenWait = 60 * time.Second
	// maxRedirects is the limit of net/http.
	maxRedirects = 10
)

// transportKey identifies a transport.
type transportKey struct {
	host string // as in a URL
	// certs identifies the certificate files and their current state.
	certs string
	// guarded: the host must not be this machine, or an address that only this
	// machine can reach.
	guarded bool
}

// peer is a registry or a mirror. It can refer us to other hosts: by redirects,
// by the location of an upload, by the realm of a token.
type peer struct {
	hosts *hosts
	host  string // host[:port]
	plain bool   // the configuration says HTTP
	name  string // the registry's name in references
	login login  // the registry's; none for a mirror
	auth  *authorizer
}

// errLed is the error for a request to which a registry led us and that is not
// made. Retrying can't help.
type errLed struct{ text string }

func (e *errLed) Error() string { return e.text }

func (p *peer) client() *http.Client {
	return &http.Client{Transport: p, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if err := p.enough(via); err != nil {
			return err
		}
		if p.auth == nil {
			return nil
		}
		// The host of the redirect may need a token of its own.
		return p.auth.Authorize(req.Context(), req)
	}}
}

func (p *peer) enough(via []*http.Request) error {
	if len(via) >= maxRedirects {
		return &errLed{fmt.Sprintf("the registry %s redirects more than %d times", p.host, maxRedirects)}
	}
	return nil
}

// unsafe reports whether the peer may be used without a valid certificate.
func (p *peer) unsafe() bool { return p.plain || p.hosts.insecure(p.host) }

// guards reports whether a host to which the peer refers us must not be this
// machine. A peer on this machine may refer to it, and a host that the
// configuration names is allowed.
func (p *peer) guards(u *url.URL) bool {
	if sameHost(u, p.host) || isLoopback((&url.URL{Host: p.host}).Hostname()) || p.hosts.listed(u.Host) {
		return false
	}
	return !slices.ContainsFunc(p.tokenHosts(), func(host string) bool { return sameHost(u, host) })
}

// tokenHosts returns the hosts that the configuration trusts with the peer's
// login.
func (p *peer) tokenHosts() []string {
	return slices.Concat(p.hosts.tokenHosts[strings.ToLower(p.name)], p.hosts.tokenHosts[strings.ToLower(p.host)])
}

// RoundTrip sends a request to the peer, or to a host to which it referred us.
// Only the peer receives credentials. A secure peer can't refer us to HTTP.
func (p *peer) RoundTrip(req *http.Request) (*http.Response, error) {
	own := sameHost(req.URL, p.host)
	if req.URL.Scheme != "https" && !p.unsafe() && !p.hosts.insecure(req.URL.Host) {
		return nil, &errLed{fmt.Sprintf("the registry %s refers to %s, which does not use TLS", p.host, origin(req.URL))}
	}
	req = req.Clone(req.Context())
	if !own && req.Context().Value(forToken{}) == nil && (p.auth == nil || !p.auth.isMinted(req)) {
		for _, secret := range []string{"Authorization", "Proxy-Authorization", "Cookie", "Cookie2"} {
			req.Header.Del(secret)
		}
	}
	// Only an encoding that needs little memory to decode is accepted.
	if req.Header.Get("Accept-Encoding") != "" {
		req.Header.Set("Accept-Encoding", "identity")
	}
	transport, err := p.hosts.transport(req.URL.Host, p.guards(req.URL))
	if err != nil {
		return nil, &errLed{err.Error()} // retrying can't help
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	switch coding := strings.ToLower(strings.Join(resp.Header.Values("Content-Encoding"), ",")); coding {
	case "", "identity", "gzip", "deflate":
	default:
		resp.Body.Close()
		return nil, &errLed{fmt.Sprintf("%s answered in the content encoding %.40q, which was not requested", origin(req.URL), coding)}
	}
	if path.Base(path.Dir(req.URL.Path)) == "manifests" {
		resp.Body = &atMost{ReadCloser: resp.Body, left: maxDocument, what: "manifest"}
	}
	return resp, nil
}

// forToken marks a request to a token server that is trusted with the login.
type forToken struct{}

// transport returns a transport to a host. The host's certificate must be valid
// unless the host is allowed to do without.
//
// Certificate files for the host are read again when they change, so that new
// ones need no reload. An error is about these files.
func (h *hosts) transport(host string, guarded bool) (http.RoundTripper, error) {
	certs := certsOf(h.certDirs, host)
	key := transportKey{host: host, certs: certs.stamp, guarded: guarded}
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.transports[key]; t != nil && certs.err == nil {
		return t, nil
	}
	insecure := h.insecure(host)
	conf := &tls.Config{InsecureSkipVerify: insecure, MinVersion: tls.VersionTLS12}
	if err := certs.load(conf); err != nil {
		return nil, err
	}
	for old, t := range h.transports {
		if old.host == host && old.guarded == guarded {
			closeIdle(t)
			delete(h.transports, old)
		}
	}
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	dial := dialer.DialContext
	if guarded {
		guarded := &net.Dialer{Timeout: dialer.Timeout, KeepAlive: dialer.KeepAlive, Control: refuseOwn}
		dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if isProxy(addr) {
				return dialer.DialContext(ctx, network, addr)
			}
			return guarded.DialContext(ctx, network, addr)
		}
	}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dial,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  60 * time.Second,
		ExpectContinueTimeout:  5 * time.Second,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    h.maxDownloads,
		MaxResponseHeaderBytes: maxHeaders,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		TLSClientConfig:        conf,
	}
	var t http.RoundTripper = transport
	if insecure {
		t = idleCloser{docker.NewHTTPFallback(transport), transport}
	}
	h.transports[key] = t
	return t, nil
}

func (h *hosts) closeIdle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.transports {
		closeIdle(t)
	}
}

func closeIdle(t http.RoundTripper) {
	if c, ok := t.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// idleCloser passes CloseIdleConnections on to the transport below.
type idleCloser struct {
	http.RoundTripper
	below *http.Transport
}

func (c idleCloser) CloseIdleConnections() { c.below.CloseIdleConnections() }

// refuseOwn keeps registries from making the daemon connect to its own host, or
// to a link-local address at which a cloud serves data for this machine alone.
// It checks the address of the connection, so a name server can't evade it.
func refuseOwn(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := at.Addr().Unmap()
	if ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() || ip == cloudIPv6 {
		return &errLed{fmt.Sprintf("a registry refers to %s, an address that only this host can reach: to allow this, add it to \"insecure-registries\"", ip)}
	}
	return nil
}

// cloudIPv6 is the address at which Amazon's machines get their credentials.
var cloudIPv6 = netip.MustParseAddr("fd00:ec2::254")

// isProxy reports whether an address is that of a configured proxy.
func isProxy(addr string) bool {
	conf := httpproxy.FromEnvironment()
	for _, proxy := range []string{conf.HTTPProxy, conf.HTTPSProxy} {
		if proxy == "" {
			continue
		}
		if !strings.Contains(proxy, "://") {
			proxy = "http://" + proxy
		}
		if u, err := url.Parse(proxy); err == nil && sameHost(u, addr) {
			return true
		}
	}
	return false
}

// sameHost reports whether a URL has this host[:port].
func sameHost(u *url.URL, host string) bool {
	other := &url.URL{Scheme: u.Scheme, Host: host}
	return strings.EqualFold(u.Hostname(), other.Hostname()) && portOf(u) == portOf(other)
}

func portOf(u *url.URL) string {
	switch port := u.Port(); {
	case port != "":
		return port
	case u.Scheme == "http":
		return "80"
	case u.Scheme == "socks5", u.Scheme == "socks5h":
		return "1080"
	}
	return "443"
}

// origin is the part of a URL that may be shown. The path may contain a secret.
func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// atMost fails when more than left bytes are read.
type atMost struct {
	io.ReadCloser
	left int64
	what string
}

func (r *atMost) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, &errLed{fmt.Sprintf("the registry's %s is too long", r.what)}
	}
	return n, err
}

// isLed reports whether err is an errLed.
func isLed(err error) bool {
	var led *errLed
	return errors.As(err, &led)
}
