// SPDX-License-Identifier: Apache-2.0

// Package errs makes errors of a kind whose text is a sentence for the user. The
// kind decides the HTTP status, and adds no words of its own to the text.
package errs

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// NotFound is answered with 404.
func NotFound(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

// Conflict is answered with 409.
func Conflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

// Invalid is answered with 400.
func Invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// Forbidden is answered with 403.
func Forbidden(format string, args ...any) error {
	return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf(format, args...))
}

// Unavailable is answered with 503.
func Unavailable(format string, args ...any) error {
	return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf(format, args...))
}

// NotImplemented is answered with 501.
func NotImplemented(format string, args ...any) error {
	return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(format, args...))
}

// Unmet is answered with 409: something has to be there first, or to be of another release.
func Unmet(format string, args ...any) error {
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf(format, args...))
}
