// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/registry"
)

func TestInsecureRegistriesAreMatchedByHostPortAndRange(t *testing.T) {
	h, err := newHosts(Registry{Insecure: []string{"plain.test", "port.test:5000", "10.1.0.0/16", "fd00::/8"}})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1": true, "127.9.9.9:80": true, "[::1]:5000": true, "[::ffff:127.0.0.1]:1": true,
		"plain.test": true, "PLAIN.test:443": true, "port.test:5000": true, "port.test": false, "port.test:5001": false,
		"10.1.2.3:5000": true, "10.2.0.1": false, "[fd00::1]": true, "[fe80::1]": false, "other.test": false, "localhost.other.test": false,
	} {
		if got := h.insecure(host); got != want {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
}

func TestBadRegistryOptionsAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		r    Registry
		text string
	}{
		{Registry{Mirrors: []string{"mirror.test"}}, `"mirror.test"`},
		{Registry{Mirrors: []string{"ftp://mirror.test"}}, "unsupported scheme"},
		{Registry{Mirrors: []string{"https://user:x@mirror.test"}}, "want only a host and a path"},
		{Registry{Mirrors: []string{"https://mirror.test?x=1"}}, "want only a host and a path"},
		{Registry{Insecure: []string{"http://plain.test"}}, "should not contain '://'"},
		{Registry{Insecure: []string{"10.0.0.0/99"}}, "is not valid"},
		{Registry{MaxDownloads: -1}, "must be 1 or more"},
	} {
		_, err := newHosts(c.r)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
}

func TestCredentialsAreReadFromEveryForm(t *testing.T) {
	for name, c := range map[string]struct {
		auth                *registry.AuthConfig
		host                string
		user, secret, token string
	}{
		"none":           {nil, "a.test", "", "", ""},
		"password":       {&registry.AuthConfig{Username: "u", Password: "p"}, "a.test", "u", "p", ""},
		"identity token": {&registry.AuthConfig{Username: "u", IdentityToken: "t"}, "a.test", "", "t", ""},
		"registry token": {&registry.AuthConfig{RegistryToken: "t"}, "a.test", "", "", "t"},
		"auth":           {&registry.AuthConfig{Auth: "dTpwOnE="}, "a.test", "u", "p:q", ""},
		"hub":            {&registry.AuthConfig{Username: "u", Password: "p", ServerAddress: "https://index.docker.io/v1/"}, "docker.io", "u", "p", ""},
		"another host":   {&registry.AuthConfig{Username: "u", Password: "p", ServerAddress: "b.test"}, "a.test", "", "", ""},
	} {
		user, secret, token, err := credentials(c.auth, c.host)
		if err != nil || user != c.user || secret != c.secret || token != c.token {
			t.Errorf("%s: %q %q %q %v", name, user, secret, token, err)
		}
	}
	if _, _, _, err := credentials(&registry.AuthConfig{Auth: "%%"}, "a.test"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad base64: %v", err)
	}
	if _, _, _, err := credentials(&registry.AuthConfig{RegistryToken: "a\r\nX: y"}, "a.test"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("token with a line break: %v", err)
	}
}

func TestUntilIsATimeOrADuration(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for value, want := range map[string]time.Time{
		"24h":                  now.Add(-24 * time.Hour),
		"1700000000":           time.Unix(1700000000, 0),
		"1700000000.5":         time.Unix(1700000000, 5e8),
		"2026-01-02T03:04:05Z": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02":           time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC),
	} {
		got, err := parseUntil(value, now)
		if err != nil || !got.Equal(want) {
			t.Errorf("%s: %s %v, want %s", value, got, err, want)
		}
	}
	if _, err := parseUntil("soon", now); !errdefs.IsInvalidArgument(err) {
		t.Errorf("soon: %v", err)
	}
}

func TestWordsAreSplitLikeADockerfiles(t *testing.T) {
	for in, want := range map[string][]string{
		`a=1 b=2`:         {"a=1", "b=2"},
		`a="x y" b='p q'`: {"a=x y", "b=p q"},
		`a=x\ y`:          {"a=x y"},
		`a="q\"q" b=\\`:   {`a=q"q`, `b=\`},
		`a="\n" b='\n'`:   {`a=\n`, `b=\n`},
		`a=""`:            {"a="},
		"":                nil,
	} {
		got, err := splitWords(in)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q %v, want %q", in, got, err, want)
		}
	}
}

func FuzzChanges(f *testing.F) {
	for _, s := range []string{`CMD ["a"]`, `ENV a=b c="d`, "EXPOSE 1-3/udp", "HEALTHCHECK --interval=1s CMD x", `LABEL \`, "ONBUILD RUN x", "VOLUME []", "WORKDIR ../.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var c dockerspec.DockerOCIImageConfig
		if err := applyChanges(&c, []string{line}); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", line, err)
		}
	})
}

func TestKeyLockGivesAKeyToOneAtATime(t *testing.T) {
	var l keyLock
	ctx := context.Background()
	var inside atomic.Int32
	done := make(chan struct{})
	for range 50 {
		go func() {
			defer func() { done <- struct{}{} }()
			if err := l.Lock(ctx, "k"); err != nil {
				t.Error(err)
				return
			}
			if inside.Add(1) != 1 {
				t.Error("two at once")
			}
			inside.Add(-1)
			l.Unlock("k")
		}()
	}
	for range 50 {
		<-done
	}
	if err := l.Lock(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := l.Lock(gone, "k"); err == nil {
		t.Error("a caller that gave up got the lock")
	}
	if err := l.Lock(ctx, "other"); err != nil {
		t.Error(err)
	}
	l.Unlock("other")
	l.Unlock("k")
	if len(l.locked) != 0 {
		t.Errorf("%d keys are remembered though nobody holds them", len(l.locked))
	}
}
