// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	"holdfast/internal/errs"
)

// Auth asks a registry whether it accepts the credentials, as docker login
// does: GET /v2/, answering one challenge. An identity token is returned as it
// was given. Errors: unauthenticated with the registry's status, unavailable if
// it can't be reached.
func (rm *remote) Auth(ctx context.Context, auth registry.AuthConfig) (identityToken string, err error) {
	if auth.ServerAddress == "" {
		auth.ServerAddress = "docker.io"
	}
	name := registryName(auth.ServerAddress)
	list, err := rm.registry.Load().hostsFor(&auth)(name)
	if err != nil {
		return "", err
	}
	host := list[len(list)-1] // hostsFor lists mirrors first and the registry itself last
	get := func() (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, host.Scheme+"://"+host.Host+host.Path+"/", nil)
		if err != nil {
			return nil, errs.Invalid("invalid registry address %q: %v", auth.ServerAddress, err)
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
			return "", errdefs.ErrUnauthenticated.WithMessage(fmt.Sprintf("%s asks for an unsupported kind of authentication: %v", host.Host, err))
		}
		// An anonymous request may succeed, but proves nothing about the
		// credentials.
		if a, ok := host.Authorizer.(*authorizer); ok && a.loginWithheld() != nil {
			return "", errdefs.ErrUnauthenticated.WithMessage(a.loginWithheld().Error())
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
	return "", errs.Unavailable("the registry %s answered with status: %s", host.Host, resp.Status)
}
