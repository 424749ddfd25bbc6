// SPDX-License-Identifier: Apache-2.0

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

	"holdfast/internal/errs"
)

// maxTags bounds the tags that are pulled from one repository.
const maxTags = 10_000

var nextLink = regexp.MustCompile(`<([^>]+)>\s*;\s*rel="?next"?`)

// remoteTags lists the tags of a repository (OCI distribution spec, "Listing
// Tags"), from the first host that answers.
func (rm *remote) remoteTags(ctx context.Context, named reference.Named, auth *registry.AuthConfig) ([]string, error) {
	places, err := rm.registry.Load().hostsFor(auth)(reference.Domain(named))
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
	// A page may be empty, so the number of pages is bounded as well.
	for pages := 0; next != nil && len(tags) < maxTags && pages < maxTags/10; pages++ {
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
		more, err := base.Parse(link[1])
		if err != nil || more.Host != base.Host || more.Scheme != base.Scheme {
			return nil, errs.Invalid("the registry's list of tags continues at another host or scheme: %.200q", link[1])
		}
		next = more
	}
	return tags, nil
}

// get sends a request. If the host demands credentials, it repeats it with
// them.
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
