package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// kinded is an error whose message is wholly ours and whose kind and cause can
// still be asked for.
type kinded struct {
	message string
	kind    error
	cause   error
}

func (e *kinded) Error() string   { return e.message }
func (e *kinded) Unwrap() []error { return []error{e.kind, e.cause} }

func errInvalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func errNotFound(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

func errConflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

// errNoImage is Docker's message for a name that nothing has.
func errNoImage(name string) error { return errNotFound("No such image: %s", name) }

// errResolve turns what a registry answered to a name into Docker's words.
// name and ref are familiar, without and with tag.
func errResolve(name, ref string, err error) error {
	if refused := errRefused(name, ref, err); refused != nil {
		return refused
	}
	switch {
	case errdefs.IsNotFound(err):
		return &kinded{fmt.Sprintf("manifest for %s not found: manifest unknown: manifest unknown", ref), errdefs.ErrNotFound, err}
	case errdefs.IsInvalidArgument(err):
		return err
	}
	return &kinded{fmt.Sprintf("failed to resolve reference %q: %s", ref, cleaned(err)), errdefs.ErrUnavailable, err}
}

// errPull is the same for what comes after the name.
func errPull(name, ref string, err error) error {
	if refused := errRefused(name, ref, err); refused != nil {
		return refused
	}
	var known *kinded
	var layer *layerError
	if errors.As(err, &known) || errors.As(err, &layer) || errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || isHostError(err) {
		return err
	}
	return &kinded{fmt.Sprintf("failed to pull %q: %s", ref, cleaned(err)), errdefs.ErrUnavailable, err}
}

// errRefused is err itself when the caller gave up, an error in Docker's words
// when the registry let nobody in, and nil for anything else.
func errRefused(name, ref string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	denied := errors.Is(err, docker.ErrInvalidAuthorization)
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		switch status.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			denied = true
		case http.StatusTooManyRequests:
			return &kinded{"toomanyrequests: the registry limits pulls of " + ref + "; wait or log in", errdefs.ErrUnavailable, err}
		}
	}
	if !denied {
		return nil
	}
	return &kinded{fmt.Sprintf("pull access denied for %s, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", name), errdefs.ErrNotFound, err}
}

// cleaned leaves out what the libraries say about themselves.
func cleaned(err error) string {
	return strings.NewReplacer("failed to do request: ", "", "httpReadSeeker: failed open: ", "", "failed to copy: ", "").Replace(err.Error())
}
