// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

func TestStatusOfEveryKind(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 200},
		{errdefs.ErrNotModified, 304},
		{errdefs.ErrInvalidArgument, 400},
		{errdefs.ErrOutOfRange, 400},
		{errdefs.ErrUnauthenticated, 401},
		{errdefs.ErrPermissionDenied, 403},
		{errdefs.ErrNotFound, 404},
		{errdefs.ErrConflict, 409},
		{errdefs.ErrAlreadyExists, 409},
		{errdefs.ErrFailedPrecondition, 409},
		{errdefs.ErrAborted, 409},
		{&http.MaxBytesError{Limit: 1}, 413},
		{errdefs.ErrInternal, 500},
		{errdefs.ErrUnknown, 500},
		{errdefs.ErrDataLoss, 500},
		{errors.New("no kind"), 500},
		{context.Canceled, 500},
		{errdefs.ErrNotImplemented, 501},
		{errdefs.ErrUnavailable, 503},
		{errdefs.ErrResourceExhausted, 503},
		{Invalid("x"), 400},
		{Unavailable("x"), 501},
		// The validation in github.com/moby/moby/api has its own kinds.
		{container.ValidateRestartPolicy(container.RestartPolicy{Name: "odd"}), 400},
	} {
		if got := Status(c.err); got != c.want {
			t.Errorf("%v (%T): %d, want %d", c.err, c.err, got, c.want)
		}
		if c.err == nil {
			continue
		}
		if got := Status(fmt.Errorf("start web: %w", c.err)); got != c.want {
			t.Errorf("%v, wrapped: %d, want %d", c.err, got, c.want)
		}
		if got := Status(errors.Join(errors.New("other"), c.err)); got != c.want {
			t.Errorf("%v, joined: %d, want %d", c.err, got, c.want)
		}
	}
}

func TestErrorTextIsOnlyWhatWasSaid(t *testing.T) {
	err := Invalid("bad %q: %w", "x", errors.New("cause"))
	if err.Error() != `bad "x": cause` {
		t.Errorf("%q", err)
	}
}

func TestGoneIsTheClientsLeavingOnly(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
	if Gone(r, context.Canceled) {
		t.Error("gone while the client is there")
	}
	cancel()
	if !Gone(r, fmt.Errorf("wait: %w", context.Canceled)) {
		t.Error("not gone after the client has left")
	}
	if Gone(r, errdefs.ErrInternal) {
		t.Error("a failure of its own is taken for the client's leaving")
	}
}
