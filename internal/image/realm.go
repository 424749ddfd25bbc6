// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerauth "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"golang.org/x/net/publicsuffix"
)

// login is a user's credentials for a registry.
type login struct{ user, secret string }

// authorize makes the peer answer challenges. Only a trusted token server
// receives the login. Other token servers are asked for an anonymous token.
func (p *peer) authorize() *authorizer {
	a := &authorizer{peer: p, minted: map[string]bool{}}
	client := &http.Client{Transport: &tokenTransport{a}, Timeout: tokenWait}
	client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if a.trusts(via[0].URL) && !a.trusts(req.URL) {
			return &errLed{fmt.Sprintf("the token server of the registry %s redirects to %s", p.host, origin(req.URL))}
		}
		return p.enough(via)
	}
	a.known = docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(string) (string, string, error) {
		return p.login.user, p.login.secret, nil
	}))
	a.nobody = docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(string) (string, string, error) {
		return "", "", nil
	}))
	p.auth = a
	return a
}

// authorizer decides by the realm of a challenge whether the login is sent with
// the answer.
type authorizer struct {
	peer          *peer
	known, nobody docker.Authorizer

	mu       sync.Mutex
	withheld string          // token server from which the login is withheld
	minted   map[string]bool // tokens that hosts issued anonymously, by host and token
}

// errWithheld explains why a registry grants only anonymous access.
type errWithheld struct{ registry, host string }

func (e *errWithheld) Error() string {
	return fmt.Sprintf("the registry %s uses the token server %s, which is in another domain, so the login was not sent to it: to allow this, add %q to \"registry-token-hosts\" in the daemon's configuration",
		e.registry, e.host, e.registry+"="+e.host)
}

func (e *errWithheld) Is(target error) bool { return target == docker.ErrInvalidAuthorization }

// loginWithheld returns an error if the login was withheld from the token server.
func (a *authorizer) loginWithheld() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.withheld == "" || a.peer.login.secret == "" {
		return nil
	}
	return &errWithheld{a.peer.name, a.withheld}
}

func (a *authorizer) chosen() docker.Authorizer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.withheld != "" {
		return a.nobody
	}
	return a.known
}

// Authorize adds the credentials to a request that the last challenge of its
// host asks for.
func (a *authorizer) Authorize(ctx context.Context, req *http.Request) error {
	if sameHost(req.URL, a.peer.host) {
		err := a.chosen().Authorize(ctx, req)
		if withheld := a.loginWithheld(); err != nil && withheld != nil {
			return errors.Join(withheld, err)
		}
		return err
	}
	// A redirect to another host.
	req.Header.Del("Authorization")
	err := a.nobody.Authorize(ctx, req)
	if value := req.Header.Get("Authorization"); value != "" {
		a.mu.Lock()
		a.minted[strings.ToLower(req.URL.Host)+" "+value] = true
		a.mu.Unlock()
	}
	return err
}

// isMinted reports whether a request to another host carries a token that this
// host itself issued anonymously.
func (a *authorizer) isMinted(req *http.Request) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.minted[strings.ToLower(req.URL.Host)+" "+req.Header.Get("Authorization")]
}

// AddResponses handles the challenge in the last response.
func (a *authorizer) AddResponses(ctx context.Context, answers []*http.Response) error {
	last := answers[len(answers)-1]
	if !sameHost(last.Request.URL, a.peer.host) {
		return a.nobody.AddResponses(ctx, answers) // the challenge is not the registry's
	}
	for _, c := range dockerauth.ParseAuthHeader(last.Header) {
		if c.Scheme != dockerauth.BearerAuth {
			continue
		}
		realm, err := url.Parse(c.Parameters["realm"])
		if err != nil || realm.Host == "" {
			return fmt.Errorf("the registry %s names the token server %.200q: %w", a.peer.host, c.Parameters["realm"], docker.ErrInvalidAuthorization)
		}
		var withheld string
		if !a.trusts(realm) {
			withheld = realm.Host
		}
		a.mu.Lock()
		before := a.withheld
		a.withheld = withheld
		a.mu.Unlock()
		if refusal := a.loginWithheld(); refusal != nil {
			if before == withheld {
				return refusal // the anonymous token was refused too
			}
			a.peer.hosts.log.Warn(refusal.Error(), "registry", a.peer.name, "token-host", realm.Host)
		}
		break
	}
	return a.chosen().AddResponses(ctx, answers)
}

// trusts reports whether a token server may receive the registry's login: it is
// the registry itself, a host of the same registrable domain, or configured.
// Over HTTP it is trusted only if the registry's own login is sent over HTTP
// too.
func (a *authorizer) trusts(realm *url.URL) bool {
	if realm.Scheme != "https" && !(realm.Scheme == "http" && a.peer.unsafe()) {
		return false
	}
	if sameHost(realm, a.peer.host) {
		return true
	}
	if slices.ContainsFunc(a.peer.tokenHosts(), func(host string) bool { return sameHost(realm, host) }) {
		return true
	}
	own := (&url.URL{Host: a.peer.host}).Hostname()
	mine, theirs := registrable(own), registrable(realm.Hostname())
	return mine != "" && mine == theirs
}

// registrable returns the domain of a host that is registered, such as
// docker.io for auth.docker.io. It is empty for addresses, because each port of
// one may belong to another party, and for names below a public suffix that
// nobody owns.
func registrable(host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if net.ParseIP(host) != nil || strings.HasPrefix(host, "[") {
		return ""
	}
	domain, err := publicsuffix.EffectiveTLDPlusOne(host)
	if err != nil {
		return ""
	}
	return domain
}

// tokenTransport carries requests for tokens. It sends the login only to
// trusted hosts, also after redirects, and bounds the answers.
type tokenTransport struct{ a *authorizer }

func (t *tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	if t.a.trusts(req.URL) {
		ctx = context.WithValue(ctx, forToken{}, true)
	}
	resp, err := t.a.peer.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	resp.Body = &atMost{ReadCloser: resp.Body, left: maxToken, what: "token"}
	return resp, nil
}
