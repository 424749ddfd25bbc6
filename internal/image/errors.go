// SPDX-License-Identifier: Apache-2.0

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

	"holdfast/internal/errs"
)

// kinded is an error with a message of its own. errors.Is and errors.As still
// find its kind and its cause.
type kinded struct {
	message string
	kind    error
	cause   error
}

func (e *kinded) Error() string   { return e.message }
func (e *kinded) Unwrap() []error { return []error{e.kind, e.cause} }

// errNoImage is Docker's message for a name that no image has.
func errNoImage(name string) error { return errs.NotFound("No such image: %s", name) }

// errResolve turns a registry's answer to a name into Docker's message. name
// and ref are familiar names, without and with the tag.
func errResolve(name, ref string, err error) error {
	if refused := errRefused(name, ref, err); refused != nil {
		return refused
	}
	switch {
	case errdefs.IsNotFound(err) && strings.Contains(err.Error(), "byte manifest"): // matched by the resolver's message, as the error has no kind
		return errs.Invalid("the manifest of %s is too large: %s", ref, err)
	case errdefs.IsNotFound(err):
		return &kinded{fmt.Sprintf("manifest for %s not found: manifest unknown: manifest unknown", ref), errdefs.ErrNotFound, err}
	case errdefs.IsInvalidArgument(err):
		return err
	case isLed(err):
		return &kinded{fmt.Sprintf("failed to resolve reference %q: %s", ref, cleaned(err)), errdefs.ErrPermissionDenied, err}
	}
	return &kinded{fmt.Sprintf("failed to resolve reference %q: %s", ref, cleaned(err)), errdefs.ErrUnavailable, err}
}

// errPull is errResolve for errors after the name was resolved.
func errPull(name, ref string, err error) error {
	if refused := errRefused(name, ref, err); refused != nil {
		return refused
	}
	var known *kinded
	var layer *layerError
	if errors.As(err, &known) || errors.As(err, &layer) || errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || isHostError(err) {
		return err
	}
	if isLed(err) {
		return &kinded{fmt.Sprintf("failed to pull %q: %s", ref, cleaned(err)), errdefs.ErrPermissionDenied, err}
	}
	return &kinded{fmt.Sprintf("failed to pull %q: %s", ref, cleaned(err)), errdefs.ErrUnavailable, err}
}

// errRefused is err itself if the caller gave up, an error with Docker's
// message if the registry denied access or limits pulls, and nil for anything
// else.
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
	var withheld *errWithheld
	if errors.As(err, &withheld) {
		return &kinded{fmt.Sprintf("access denied for %s: %s", name, withheld), errdefs.ErrNotFound, err}
	}
	return &kinded{fmt.Sprintf("pull access denied for %s, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", name), errdefs.ErrNotFound, err}
}

// cleaned removes the prefixes that the libraries add about their own steps.
func cleaned(err error) string {
	return strings.NewReplacer("failed to do request: ", "", "httpReadSeeker: failed open: ", "", "failed to copy: ", "").Replace(err.Error())
}
