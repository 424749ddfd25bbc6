// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/moby/api/types/registry"

	"holdfast/internal/errs"
)

// Defaults of Docker's max-concurrent-downloads, max-concurrent-uploads and
// max-download-attempts.
const (
	DefaultMaxDownloads = 3
	DefaultMaxUploads   = 5
	DefaultMaxAttempts  = 5
)

// Registry configures how registries are reached. The keys are those of
// Docker's daemon.json.
type Registry struct {
	// Mirrors are URLs tried before Docker Hub, and only for it.
	Mirrors []string
	// Insecure are hosts (with or without port) and CIDR ranges whose
	// certificates are not verified, and which may use plain HTTP. Loopback
	// addresses are always allowed to.
	Insecure []string
	// MaxDownloads bounds the layers that one pull downloads at the same time,
	// MaxAttempts the tries for each, MaxUploads the blobs that one push sends
	// at the same time. 0 means the default.
	MaxDownloads, MaxAttempts, MaxUploads int
	// TokenHosts are REGISTRY=HOST[:PORT]: token servers outside of a
	// registry's own domain that may receive the registry's credentials.
	TokenHosts []string
	// CertDirs are the directories with certificates for registries; nil means
	// the default ones.
	CertDirs []string
	// Log receives warnings, for example why a login was withheld. nil means
	// slog.Default.
	Log *slog.Logger
}

// hosts is a Registry prepared for use. It is immutable except for its
// connections.
type hosts struct {
	maxDownloads, maxAttempts, maxUploads int
	mirrors                               []*url.URL
	names                                 map[string]bool
	nets                                  []netip.Prefix
	tokenHosts                            map[string][]string // by registry
	log                                   *slog.Logger

	certDirs []string

	mu         sync.Mutex
	transports map[transportKey]http.RoundTripper // kept to reuse connections
}

// remote reaches registries.
type remote struct {
	env
	registry atomic.Pointer[hosts]
}

// SetRegistry replaces the configuration. Running pulls keep the old one. It
// fails without effect if r is not valid.
func (rm *remote) SetRegistry(r Registry) error {
	if r.Log == nil {
		r.Log = rm.log
	}
	h, err := newHosts(r)
	if err != nil {
		return err
	}
	if old := rm.registry.Swap(h); old != nil {
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
		tokenHosts:   map[string][]string{},
		log:          r.Log,
		transports:   map[transportKey]http.RoundTripper{},
		certDirs:     r.CertDirs,
	}
	if h.log == nil {
		h.log = slog.Default()
	}
	if h.certDirs == nil {
		h.certDirs = defaultCertDirs
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
		return nil, errs.Invalid("invalid max concurrent downloads, uploads or attempts: must be 1 or more")
	}
	for _, m := range r.Mirrors {
		u, err := url.Parse(m)
		switch {
		case err != nil:
			return nil, errs.Invalid("invalid mirror: %q is not a valid URI: %s", m, err)
		case u.Scheme != "http" && u.Scheme != "https":
			return nil, errs.Invalid("invalid mirror: %q: unsupported scheme %q, want http or https", m, u.Scheme)
		case u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
			return nil, errs.Invalid("invalid mirror: %q: want only a host and a path", m)
		}
		h.mirrors = append(h.mirrors, u)
	}
	for _, in := range r.Insecure {
		if strings.Contains(in, "://") {
			return nil, errs.Invalid("insecure registry %s should not contain '://'", in)
		}
		if prefix, err := netip.ParsePrefix(in); err == nil {
			h.nets = append(h.nets, prefix.Masked())
		} else if in == "" || strings.Contains(in, "/") {
			return nil, errs.Invalid("insecure registry %q is not valid: want a host, host:port or CIDR", in)
		} else {
			h.names[strings.ToLower(in)] = true
		}
	}
	for _, pair := range r.TokenHosts {
		name, host, ok := strings.Cut(strings.ToLower(pair), "=")
		if !ok || name == "" || host == "" || strings.ContainsAny(pair, "/@?# ") {
			return nil, errs.Invalid("registry token host %q is not valid: want REGISTRY=HOST or REGISTRY=HOST:PORT", pair)
		}
		name = registryName(name)
		h.tokenHosts[name] = append(h.tokenHosts[name], host)
	}
	return h, nil
}

// insecure reports whether a registry host, host[:port], may do without a
// valid certificate. Only literal addresses are compared with CIDR ranges: a
// name server could otherwise make any registry insecure.
func (h *hosts) insecure(host string) bool {
	return isLoopback((&url.URL{Host: host}).Hostname()) || h.listed(host)
}

// listed reports whether the configuration lists the host as insecure. Loopback
// is not considered.
func (h *hosts) listed(host string) bool {
	host = strings.ToLower(host)
	bare := (&url.URL{Host: host}).Hostname()
	if h.names[host] || h.names[bare] {
		return true
	}
	addr, err := netip.ParseAddr(bare)
	if err != nil {
		return false
	}
	for _, n := range h.nets {
		if n.Contains(addr.Unmap()) {
			return true
		}
	}
	return false
}

// isLoopback reports whether a host, without port, names this machine.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && addr.Unmap().IsLoopback()
}

// hub is the host of the registry docker.io.
const hub = "registry-1.docker.io"

// hostsFor lists the hosts to ask for a repository of a registry, in order.
func (h *hosts) hostsFor(auth *registry.AuthConfig) docker.RegistryHosts {
	return func(name string) ([]docker.RegistryHost, error) {
		var out []docker.RegistryHost
		if name == "docker.io" {
			for _, m := range h.mirrors {
				to := &peer{hosts: h, host: m.Host, name: m.Host, plain: m.Scheme == "http"}
				out = append(out, docker.RegistryHost{
					Client:       to.client(),
					Authorizer:   to.authorize(),
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
		to := &peer{hosts: h, host: host, name: name}
		main := docker.RegistryHost{
			Client:       to.client(),
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
			to.login = login{user, secret}
			main.Authorizer = to.authorize()
		}
		return append(out, main), nil
	}
}

// credentials reads what docker login stored: user and password, an identity
// token (without user), or a registry token. They are used only for the
// registry for which they were given.
func credentials(auth *registry.AuthConfig, name string) (user, secret, token string, err error) {
	if auth == nil || auth.ServerAddress != "" && registryName(auth.ServerAddress) != name {
		return "", "", "", nil
	}
	switch {
	case auth.RegistryToken != "":
		// The token is copied into a header unchanged.
		if strings.ContainsFunc(auth.RegistryToken, unicode.IsControl) {
			return "", "", "", errs.Invalid("invalid credentials: the registry token contains a control character")
		}
		return "", "", auth.RegistryToken, nil
	case auth.IdentityToken != "":
		return "", auth.IdentityToken, "", nil
	case auth.Username == "" && auth.Auth != "":
		raw, err := base64.StdEncoding.DecodeString(auth.Auth)
		if err != nil {
			return "", "", "", errs.Invalid("invalid credentials: auth is not base64")
		}
		u, p, ok := strings.Cut(string(raw), ":")
		if !ok {
			return "", "", "", errs.Invalid("invalid credentials: auth is not user:password")
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
	return h.tracking(auth, nil)
}

// tracking is a resolver that reports the status of each push to a tracker,
// which may be nil.
func (h *hosts) tracking(auth *registry.AuthConfig, tracker docker.StatusTracker) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts:   h.hostsFor(auth),
		Headers: http.Header{"User-Agent": {userAgent}},
		Tracker: tracker,
	})
}

// userAgent is the User-Agent that registries see.
const userAgent = "holdfast"
