// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	"holdfast/internal/errs"
	"holdfast/internal/filter"
)

const (
	// index is the host that searches the registry docker.io.
	index = "index.docker.io"
	// searchMost bounds the answer to a search, in bytes.
	searchMost = 4 << 20
	// searchDefault and searchLimit are how many results are asked for.
	searchDefault, searchLimit = 25, 100
)

// Search asks a registry for repositories, by GET /v1/search: term is what to look
// for, after HOST/ if it is not docker.io that is asked. limit is 1 to 100; 0 means 25.
// f may have the terms is-official, is-automated (true finds nothing, as the hub
// has no such repositories any more) and stars (the least number). Errors: invalid
// argument; unauthenticated, unavailable or unknown from the registry.
func (rm *remote) Search(ctx context.Context, term string, limit int, f filter.Args, auth *registry.AuthConfig) ([]registry.SearchResult, error) {
	wanted, err := searchFilter(f)
	if err != nil {
		return nil, err
	}
	switch {
	case term == "":
		return nil, errs.Invalid("missing parameter term: name what to search for")
	case strings.Contains(term, "://"):
		return nil, errs.Invalid("invalid repository name: repository name (%s) should not have a scheme", term)
	case limit == 0:
		limit = searchDefault
	case limit < 0 || limit > searchLimit:
		return nil, errs.Invalid("limit %d is outside the range of [1, %d]", limit, searchLimit)
	}
	name, query := searchedRegistry(term)
	host := name
	if name == "docker.io" {
		host = index
	}
	user, secret, token, err := credentials(auth, name)
	if err != nil {
		return nil, err
	}
	to := &peer{hosts: rm.registry.Load(), host: host, name: name}
	where := url.URL{Scheme: "https", Host: host, Path: "/v1/search", RawQuery: "q=" + url.QueryEscape(query) + "&n=" + strconv.Itoa(limit)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		return nil, errs.Invalid("invalid registry address %q: %v", host, err)
	}
	req.Header.Set("User-Agent", userAgent)
	switch {
	case token != "":
		req.Header.Set("Authorization", "Bearer "+token)
	case user != "":
		req.SetBasicAuth(user, secret)
	}
	resp, err := to.client().Do(req)
	if err != nil {
		return nil, errdefs.ErrUnavailable.WithMessage(err.Error())
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, errdefs.ErrUnauthenticated.WithMessage(fmt.Sprintf("the registry %s refuses to search: %s: log in first", host, resp.Status))
	case http.StatusNotFound:
		return nil, errs.NotFound("the registry %s can't search (GET /v1/search: %s): only docker.io and registries with this old interface can", host, resp.Status)
	default:
		return nil, errs.Unavailable("the registry %s answered a search with status: %s", host, resp.Status)
	}
	var found registry.SearchResults
	if err := json.NewDecoder(io.LimitReader(resp.Body, searchMost)).Decode(&found); err != nil {
		return nil, errdefs.ErrUnknown.WithMessage(fmt.Sprintf("the registry %s answered a search with what is no list of repositories: %v", host, err))
	}
	out := []registry.SearchResult{}
	for _, r := range found.Results {
		if len(out) < limit && wanted(r) {
			out = append(out, r)
		}
	}
	return out, nil
}

// searchedRegistry splits a term into the registry's name and what to look for there.
func searchedRegistry(term string) (name, query string) {
	first, rest, ok := strings.Cut(term, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		if name = registryName(first); name != "docker.io" {
			return name, rest
		}
		term = rest
	}
	return "docker.io", strings.TrimPrefix(term, "library/")
}

// searchFilter returns the condition that the filter's terms state.
func searchFilter(f filter.Args) (func(registry.SearchResult) bool, error) {
	if err := f.Check("is-automated", "is-official", "stars"); err != nil {
		return nil, errs.Invalid("%v", err)
	}
	automated, byAutomated, err := f.Bool("is-automated")
	if err != nil {
		return nil, errs.Invalid("%v", err)
	}
	official, byOfficial, err := f.Bool("is-official")
	if err != nil {
		return nil, errs.Invalid("%v", err)
	}
	stars := 0
	for _, v := range f["stars"] {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, errs.Invalid("invalid filter 'stars=%s': want a number", v)
		}
		stars = max(stars, n)
	}
	return func(r registry.SearchResult) bool {
		return (!byAutomated || !automated) && (!byOfficial || official == r.IsOfficial) && r.StarCount >= stars
	}, nil
}
