package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
)

// maxTags bounds what one repository may make us pull.
const maxTags = 10_000

var nextLink = regexp.MustCompile(`<([^>]+)>\s*;\s*rel="?next"?`)

// remoteTags lists the tags of a repository (OCI distribution spec, "Listing
// Tags"), from the first host that answers.
func (s *Store) remoteTags(ctx context.Context, named reference.Named, auth *registry.AuthConfig) ([]string, error) {
	places, err := s.registry.Load().hostsFor(auth)(reference.Domain(named))
	if err != nil {
		return nil, err
	}
	ctx = docker.WithScope(ctx, "repository:"+reference.Path(named)+":pull")
	var first error
	for _, host := range places {
		tags, err := tagsFrom(ctx, host, reference.Path(named))
		if err == nil {
			return tags, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

func tagsFrom(ctx context.Context, host docker.RegistryHost, repository string) ([]string, error) {
	base := url.URL{Scheme: host.Scheme, Host: host.Host, Path: host.Path + "/" + repository + "/tags/list"}
	next := &base
	var tags []string
	for next != nil && len(tags) < maxTags {
		resp, err := get(ctx, host, next.String())
		if err != nil {
			return nil, err
		}
		var page struct {
			Tags []string `json:"tags"`
		}
		err = json.NewDecoder(io.LimitReader(resp.Body, maxDocument)).Decode(&page)
		resp.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("list of tags: %w", err)
		}
		tags = append(tags, page.Tags...)
		link := nextLink.FindStringSubmatch(resp.Header.Get("Link"))
		if link == nil {
			break
		}
		follow, err := base.Parse(link[1])
		if err != nil || follow.Host != base.Host {
			return nil, errInvalid("the registry's list of tags goes on at %q", link[1])
		}
		next = follow
	}
	return tags, nil
}

// get asks once more with credentials when the host demands them.
func get(ctx context.Context, host docker.RegistryHost, u string) (*http.Response, error) {
	var answers []*http.Response
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
		if err != nil {
			return nil, err
		}
		req.Header = host.Header.Clone()
		if req.Header == nil {
			req.Header = http.Header{}
		}
		req.Header.Set("User-Agent", userAgent)
		if host.Authorizer != nil {
			if err := host.Authorizer.Authorize(ctx, req); err != nil {
				return nil, err
			}
		}
		resp, err := host.Client.Do(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK {
			return resp, nil
		}
		answers = append(answers, resp)
		if resp.StatusCode == http.StatusUnauthorized && host.Authorizer != nil && len(answers) < 3 {
			err := host.Authorizer.AddResponses(ctx, answers)
			if err == nil {
				resp.Body.Close()
				continue
			}
			if !errdefs.IsNotImplemented(err) {
				resp.Body.Close()
				return nil, err
			}
		}
		err = remoteerrors.NewUnexpectedStatusErr(resp)
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return nil, fmt.Errorf("%s: %w", u, errdefs.ErrNotFound)
		}
		return nil, err
	}
}
