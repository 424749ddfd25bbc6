// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	"holdfast/internal/filter"
)

func TestSearchAsksTheRegistryThatTheTermNames(t *testing.T) {
	var asked string
	answer := func(w http.ResponseWriter) {
		fmt.Fprint(w, `{"results":[
			{"name":"box","star_count":12,"is_official":true,"description":"a box"},
			{"name":"me/box","star_count":3}]}`)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, secret, _ := r.BasicAuth()
		asked = r.URL.String() + " " + user + ":" + secret
		answer(w)
	}))
	defer srv.Close()
	here := strings.TrimPrefix(srv.URL, "http://")
	rm := &remote{}
	rm.registry.Store(hostsOf(t, Registry{}))
	search := func(term string, limit int, f filter.Args) ([]registry.SearchResult, error) {
		return rm.Search(context.Background(), here+"/"+term, limit, f, &registry.AuthConfig{Username: "me", Password: "secret", ServerAddress: here})
	}

	got, err := search("my box", 7, nil)
	if err != nil || len(got) != 2 || got[0] != (registry.SearchResult{Name: "box", StarCount: 12, IsOfficial: true, Description: "a box"}) {
		t.Errorf("found %+v, %v", got, err)
	}
	if want := "/v1/search?q=my+box&n=7 me:secret"; asked != want {
		t.Errorf("asked for %s, want %s", asked, want)
	}
	for _, c := range []struct {
		f    filter.Args
		want int
	}{
		{filter.Args{"is-official": {"true"}}, 1},
		{filter.Args{"is-official": {"false"}}, 1},
		{filter.Args{"is-automated": {"true"}}, 0},
		{filter.Args{"stars": {"3"}}, 2},
		{filter.Args{"stars": {"3", "4"}}, 1},
	} {
		if got, err := search("box", 0, c.f); err != nil || len(got) != c.want {
			t.Errorf("%v: found %+v, %v", c.f, got, err)
		}
	}
	if got, err := search("box", 1, nil); err != nil || len(got) != 1 {
		t.Errorf("a registry that sends more than the limit: %+v, %v", got, err)
	}

	for _, c := range []struct {
		body func(http.ResponseWriter)
		is   func(error) bool
		says string
	}{
		{func(w http.ResponseWriter) { w.WriteHeader(401) }, errdefs.IsUnauthorized, "log in first"},
		{func(w http.ResponseWriter) { w.WriteHeader(404) }, errdefs.IsNotFound, "can't search"},
		{func(w http.ResponseWriter) { w.WriteHeader(502) }, errdefs.IsUnavailable, "502 Bad Gateway"},
		{func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") }, errdefs.IsUnknown, "no list of repositories"},
		{func(w http.ResponseWriter) { fmt.Fprintf(w, `{"query":%q}`, strings.Repeat("x", searchMost)) }, errdefs.IsUnknown, "no list of repositories"},
	} {
		answer = c.body
		if _, err := search("box", 0, nil); !c.is(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("want %q, got %v", c.says, err)
		}
	}
}

func TestSearchRefusesWhatIsWrong(t *testing.T) {
	rm := &remote{}
	for _, c := range []struct {
		term  string
		limit int
		f     filter.Args
		says  string
	}{
		{"", 0, nil, "missing parameter term"},
		{"https://example.com/box", 0, nil, "should not have a scheme"},
		{"box", 101, nil, "outside the range of [1, 100]"},
		{"box", -1, nil, "outside the range of [1, 100]"},
		{"box", 0, filter.Args{"colour": {"red"}}, "invalid filter 'colour'"},
		{"box", 0, filter.Args{"stars": {"many"}}, "want a number"},
		{"box", 0, filter.Args{"is-official": {"maybe"}}, "is-official"},
	} {
		if _, err := rm.Search(context.Background(), c.term, c.limit, c.f, nil); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for term, want := range map[string]string{
		"box": "docker.io box", "library/box": "docker.io box", "me/box": "docker.io me/box", "docker.io/library/box": "docker.io box",
		"index.docker.io/me/box": "docker.io me/box", "localhost/box": "localhost box", "example.com:5000/a/b": "example.com:5000 a/b",
	} {
		if name, query := searchedRegistry(term); name+" "+query != want {
			t.Errorf("%s: got %s %s, want %s", term, name, query, want)
		}
	}
}
