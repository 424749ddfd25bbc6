package image

import (
	"crypto/tls"
	"encoding/base64"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/moby/api/types/registry"
)

// Defaults of Docker's max-concurrent-downloads, max-concurrent-uploads and
// max-download-attempts.
const (
	DefaultMaxDownloads = 3
	DefaultMaxUploads   = 5
	DefaultMaxAttempts  = 5
)

// Registry is how registries are reached. The keys are those of Docker's
// daemon.json.
type Registry struct {
	// Mirrors are URLs tried before Docker Hub, and only for it.
	Mirrors []string
	// Insecure are hosts (with or without port) and CIDR ranges whose
	// certificates are not verified, and which may speak plain HTTP. Loopback
	// always may.
	Insecure []string
	// MaxDownloads bounds the layers that one pull fetches at the same time,
	// MaxAttempts the tries for each, MaxUploads the blobs that one push sends at
	// the same time. 0 is the default.
	MaxDownloads, MaxAttempts, MaxUploads int
}

// hosts is a Registry made ready for use: immutable, but for its connections.
type hosts struct {
	maxDownloads, maxAttempts, maxUploads int
	mirrors                               []*url.URL
	names                                 map[string]bool
	nets                                  []netip.Prefix

	mu      sync.Mutex
	clients map[string]*http.Client // by host, so that connections are reused
}

// SetRegistry replaces the configuration; pulls that run keep theirs. It fails
// without effect when something in r can't be read.
func (s *Store) SetRegistry(r Registry) error {
	h, err := newHosts(r)
	if err != nil {
		return err
	}
	if old := s.registry.Swap(h); old != nil {
		old.closeIdle()
	}
	return nil
}

func newHosts(r Registry) (*hosts, error) {
	h := &hosts{
		maxDownloads: r.MaxDownloads,
		maxAttempts:  r.MaxAttempts,
		maxUploads:   r.MaxUploads,
		names:        map[string]bool{},
		clients:      map[string]*http.Client{},
	}
	if h.maxDownloads == 0 {
		h.maxDownloads = DefaultMaxDownloads
	}
	if h.maxAttempts == 0 {
		h.maxAttempts = DefaultMaxAttempts
	}
	if h.maxUploads == 0 {
		h.maxUploads = DefaultMaxUploads
	}
	if h.maxDownloads < 0 || h.maxAttempts < 0 || h.maxUploads < 0 {
		return nil, errInvalid("invalid max concurrent downloads, uploads or attempts: must be 1 or more")
	}
	for _, m := range r.Mirrors {
		u, err := url.Parse(m)
		switch {
		case err != nil:
			return nil, errInvalid("invalid mirror: %q is not a valid URI: %s", m, err)
		case u.Scheme != "http" && u.Scheme != "https":
			return nil, errInvalid("invalid mirror: %q: unsupported scheme %q, want http or https", m, u.Scheme)
		case u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
			return nil, errInvalid("invalid mirror: %q: want only a host and a path", m)
		}
		h.mirrors = append(h.mirrors, u)
	}
	for _, in := range r.Insecure {
		if strings.Contains(in, "://") {
			return nil, errInvalid("insecure registry %s should not contain '://'", in)
		}
		if prefix, err := netip.ParsePrefix(in); err == nil {
			h.nets = append(h.nets, prefix.Masked())
		} else if in == "" || strings.Contains(in, "/") {
			return nil, errInvalid("insecure registry %q is not valid: want a host, host:port or CIDR", in)
		} else {
			h.names[strings.ToLower(in)] = true
		}
	}
	return h, nil
}

func (h *hosts) closeIdle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.clients {
		c.CloseIdleConnections()
	}
}

// insecure reports whether a registry host, host[:port], may do without a
// valid certificate. Only literal addresses are compared with CIDR ranges: a
// name server could otherwise make any registry insecure.
func (h *hosts) insecure(host string) bool {
	host = strings.ToLower(host)
	bare := host
	if b, _, err := net.SplitHostPort(host); err == nil {
		bare = b
	}
	bare = strings.Trim(bare, "[]")
	if bare == "localhost" || h.names[host] || h.names[bare] {
		return true
	}
	addr, err := netip.ParseAddr(bare)
	if err != nil {
		return false
	}
	addr = addr.Unmap()
	if addr.IsLoopback() {
		return true
	}
	for _, n := range h.nets {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}

func (h *hosts) client(host string) *http.Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.clients[host]; c != nil {
		return c
	}
	insecure := h.insecure(host)
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		ExpectContinueTimeout: 5 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   h.maxDownloads,
		ForceAttemptHTTP2:     true,
		TLSClientConfig:       &tls.Config{InsecureSkipVerify: insecure, MinVersion: tls.VersionTLS12},
	}
	c := &http.Client{Transport: transport}
	if insecure {
		c.Transport = idleCloser{docker.NewHTTPFallback(transport), transport}
	}
	h.clients[host] = c
	return c
}

// idleCloser lets CloseIdleConnections through to the transport below.
type idleCloser struct {
	http.RoundTripper
	below *http.Transport
}

func (c idleCloser) CloseIdleConnections() { c.below.CloseIdleConnections() }

// hub is the host behind the name docker.io.
const hub = "registry-1.docker.io"

// hostsFor lists where a repository of a registry is asked for, in order.
func (h *hosts) hostsFor(auth *registry.AuthConfig) docker.RegistryHosts {
	return func(name string) ([]docker.RegistryHost, error) {
		var out []docker.RegistryHost
		if name == "docker.io" {
			for _, m := range h.mirrors {
				client := h.client(m.Host)
				out = append(out, docker.RegistryHost{
					Client:       client,
					Authorizer:   docker.NewDockerAuthorizer(docker.WithAuthClient(client)),
					Host:         m.Host,
					Scheme:       m.Scheme,
					Path:         strings.TrimSuffix(m.Path, "/") + "/v2",
					Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
				})
			}
		}
		host := name
		if name == "docker.io" {
			host = hub
		}
		client := h.client(host)
		main := docker.RegistryHost{
			Client:       client,
			Host:         host,
			Scheme:       "https",
			Path:         "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
		}
		user, secret, token, err := credentials(auth, name)
		if err != nil {
			return nil, err
		}
		if token != "" {
			main.Header = http.Header{"Authorization": {"Bearer " + token}}
		} else {
			main.Authorizer = docker.NewDockerAuthorizer(
				docker.WithAuthClient(client),
				docker.WithAuthCreds(func(asked string) (string, string, error) {
					if asked != host {
						return "", "", nil // a redirect elsewhere
					}
					return user, secret, nil
				}))
		}
		return append(out, main), nil
	}
}

// credentials reads what docker login stored: user and password, an identity
// token (no user), or a registry token. They are only for the registry that
// they were given for.
func credentials(auth *registry.AuthConfig, name string) (user, secret, token string, err error) {
	if auth == nil || auth.ServerAddress != "" && registryName(auth.ServerAddress) != name {
		return "", "", "", nil
	}
	switch {
	case auth.RegistryToken != "":
		return "", "", auth.RegistryToken, nil
	case auth.IdentityToken != "":
		return "", auth.IdentityToken, "", nil
	case auth.Username == "" && auth.Auth != "":
		raw, err := base64.StdEncoding.DecodeString(auth.Auth)
		if err != nil {
			return "", "", "", errInvalid("invalid credentials: auth is not base64")
		}
		u, p, ok := strings.Cut(string(raw), ":")
		if !ok {
			return "", "", "", errInvalid("invalid credentials: auth is not user:password")
		}
		return u, strings.TrimRight(p, "\x00"), "", nil
	}
	return auth.Username, auth.Password, "", nil
}

// registryName maps a server address, as docker login stores it, to the name
// of a registry in references.
func registryName(address string) string {
	_, after, ok := strings.Cut(address, "://")
	if !ok {
		after = address
	}
	host, _, _ := strings.Cut(after, "/")
	switch host {
	case "index.docker.io", hub:
		return "docker.io"
	}
	return host
}

func (h *hosts) resolver(auth *registry.AuthConfig) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts:   h.hostsFor(auth),
		Headers: http.Header{"User-Agent": {userAgent}},
	})
}

// userAgent is what registries see.
const userAgent = "holdfast"
