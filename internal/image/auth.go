package image

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
)

// Auth asks a registry whether it takes the credentials, as docker login does:
// GET /v2/, answering one challenge. An identity token comes back as it was
// given. Errors: unauthenticated with the registry's status, unavailable if it
// can't be reached.
func (s *Store) Auth(ctx context.Context, auth registry.AuthConfig) (identityToken string, err error) {
	if auth.ServerAddress == "" {
		auth.ServerAddress = "docker.io"
	}
	name := registryName(auth.ServerAddress)
	list, err := s.registry.Load().hostsFor(&auth)(name)
	if err != nil {
		return "", err
	}
	host := list[len(list)-1] // the registry itself, behind its mirrors
	get := func() (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, host.Scheme+"://"+host.Host+host.Path+"/", nil)
		if err != nil {
			return nil, errInvalid("invalid registry address %q: %v", auth.ServerAddress, err)
		}
		for k, v := range host.Header {
			req.Header[k] = v
		}
		if host.Authorizer != nil {
			if err := host.Authorizer.Authorize(ctx, req); err != nil {
				return nil, fmt.Errorf("get %s: %w", req.URL, errdefs.ErrUnauthenticated.WithMessage(err.Error()))
			}
		}
		resp, err := host.Client.Do(req)
		if err != nil {
			return nil, errdefs.ErrUnavailable.WithMessage(err.Error())
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
		return resp, nil
	}
	resp, err := get()
	if err != nil {
		return "", err
	}
	if resp.StatusCode == http.StatusUnauthorized && host.Authorizer != nil {
		if err := host.Authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
			return "", errdefs.ErrUnauthenticated.WithMessage(fmt.Sprintf("%s asks for an authentication that is not known here: %v", host.Host, err))
		}
		if resp, err = get(); err != nil {
			return "", err
		}
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		return auth.IdentityToken, nil
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return "", errdefs.ErrUnauthenticated.WithMessage(fmt.Sprintf("login attempt to https://%s/v2/ failed with status: %s", host.Host, resp.Status))
	}
	return "", errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("the registry %s answered with status: %s", host.Host, resp.Status))
}
