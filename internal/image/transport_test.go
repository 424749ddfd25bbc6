// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func hostsOf(t *testing.T, r Registry) *hosts {
	t.Helper()
	h, err := newHosts(r)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestLoginGoesToTokenServersOfTheSameDomain(t *testing.T) {
	h := hostsOf(t, Registry{Insecure: []string{"plain.example.com"}, TokenHosts: []string{"registry.example.com=auth.example.net", "10.0.0.5:5000=10.0.0.5:5001", "index.docker.io=auth.example.net:8443"}})
	for _, c := range []struct {
		name, host, realm string
		want              bool
	}{
		{"docker.io", hub, "https://auth.docker.io/token", true},
		{"docker.io", hub, "https://auth.docker.io.example.com/token", false},
		{"docker.io", hub, "http://auth.docker.io/token", false},
		{"docker.io", hub, "https://auth.example.net:8443/", true},
		{"docker.io", hub, "https://auth.example.net/", false},
		{"registry.gitlab.com", "registry.gitlab.com", "https://gitlab.com/jwt/auth", true},
		{"registry.example.com", "registry.example.com", "https://auth.example.net/x", true},
		{"registry.example.com", "registry.example.com", "https://auth.example.net:444/x", false},
		{"registry.example.com:5000", "registry.example.com:5000", "https://sso.example.com/x", true},
		{"registry.example.com", "registry.example.com", "https://other.test/x", false},
		{"me.github.io", "me.github.io", "https://you.github.io/x", false},
		{"example.co.uk", "example.co.uk", "https://other.co.uk/x", false},
		{"plain.example.com", "plain.example.com", "http://plain.example.com/token", true},
		{"10.0.0.5:5000", "10.0.0.5:5000", "https://10.0.0.5:5001/x", true},
		{"10.0.0.5:5000", "10.0.0.5:5000", "https://10.0.0.5:5002/x", false},
		{"127.0.0.1:5000", "127.0.0.1:5000", "http://127.0.0.1:5000/x", true},
		{"127.0.0.1:5000", "127.0.0.1:5000", "http://localhost:5000/x", false},
		{"registry", "registry", "https://auth/x", false},
		{"com", "com", "https://com/x", true},
		{"registry.example.com", "registry.example.com", "ftp://registry.example.com/x", false},
		{"[fd00::1]:5000", "[fd00::1]:5000", "https://[fd00::1]:5000/x", true},
		{"[fd00::1]:5000", "[fd00::1]:5000", "https://[fd00::2]:5000/x", false},
	} {
		realm, err := url.Parse(c.realm)
		if err != nil {
			t.Fatal(err)
		}
		a := (&peer{hosts: h, host: c.host, name: c.name}).authorize()
		if got := a.trusts(realm); got != c.want {
			t.Errorf("%s sends to %s: %v, want %v", c.host, c.realm, got, c.want)
		}
	}
}

func TestRegistryElsewhereLeadsNotToThisHost(t *testing.T) {
	heard := 0
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { heard++ }))
	defer srv.Close()
	here := strings.TrimPrefix(srv.URL, "http://")
	_, port, _ := strings.Cut(here, ":")
	ask := func(r Registry, registry, target string) error {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer secret")
		resp, err := (&peer{hosts: hostsOf(t, r), host: registry, name: registry}).RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	const registry = "registry.example.com"
	for _, target := range []string{srv.URL, "http://localhost:" + port, "http://[::ffff:127.0.0.1]:" + port, "http://0.0.0.0:" + port, "http://169.254.169.254/latest/meta-data", "https://[fe80::1%25lo]/", "https://[fd00:ec2::254]/", "https://127.0.0.1:" + port} {
		if err := ask(Registry{}, registry, target); err == nil || !isLed(err) {
			t.Errorf("%s: %v", target, err)
		}
	}
	if heard > 0 {
		t.Errorf("this host was asked %d times", heard)
	}
	for name, c := range map[string]struct {
		r        Registry
		registry string
	}{
		"a registry at a loopback address": {Registry{}, "127.0.0.1:1"},
		"a host that is configured":        {Registry{Insecure: []string{here}}, registry},
		"a token host":                     {Registry{TokenHosts: []string{fmt.Sprintf("%s=%s", registry, here)}}, registry},
	} {
		if err := ask(c.r, c.registry, srv.URL); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecureRegistryLeadsNowhereOverHTTP(t *testing.T) {
	h := hostsOf(t, Registry{Insecure: []string{"plain.test"}})
	for registry, led := range map[string]bool{"registry.test": true, "plain.test": false} {
		req, err := http.NewRequestWithContext(canceled(t), http.MethodGet, "http://cdn.test/blob", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = (&peer{hosts: h, host: registry, name: registry}).RoundTrip(req)
		if isLed(err) != led {
			t.Errorf("%s: %v", registry, err)
		}
	}
}

func canceled(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestDocumentsOutOfBoundsAreNotParsed(t *testing.T) {
	for text, want := range map[string]string{
		`{"a":[1,2,{"b":"},{[["}]}`:                 "",
		`"\"{[` + strings.Repeat("[", 100) + `"`:    "",
		strings.Repeat("[", 65):                     "nest",
		"[" + strings.Repeat("1,", 100_000) + "1]":  "values",
		`["` + strings.Repeat(",", 200_000) + `"]`:  "",
		strings.Repeat("[]", 100_000):               "",
		strings.Repeat(`{"a":{}},`, 60_000) + "{}]": "values",
	} {
		err := checkJSON([]byte(text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.40s…: %v, want %q", text, err, want)
		}
	}
}
