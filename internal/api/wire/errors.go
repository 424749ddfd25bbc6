// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
	"golang.org/x/sys/unix"
)

// Status is the HTTP status for an error, by its kind (containerd/errdefs). An
// error without a kind is an internal error: 500.
func Status(err error) int {
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errdefs.IsNotModified(err):
		return http.StatusNotModified
	case errdefs.IsInvalidArgument(err), errdefs.IsOutOfRange(err):
		return http.StatusBadRequest
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden
	case errdefs.IsNotFound(err):
		return http.StatusNotFound
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err), errdefs.IsFailedPrecondition(err), errdefs.IsAborted(err):
		return http.StatusConflict
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented
	case errdefs.IsUnavailable(err), errdefs.IsResourceExhausted(err):
		return http.StatusServiceUnavailable
	case refusedByKernel(err):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// refusedByKernel reports whether err is a system call's error, without a kind,
// about a name that no file can have or a path that leads nowhere. Only paths
// from requests can cause these errors; the daemon's own never do. EINVAL is
// not included, because a bug in the daemon looks the same. A request could
// cause EINVAL only by a NUL byte, which is refused before any handler (NoNUL).
func refusedByKernel(err error) bool {
	for _, e := range []error{unix.ENAMETOOLONG, unix.ENOTDIR, unix.EISDIR, unix.ELOOP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Gone reports whether the error only means that the client has left, so that
// no one can receive an answer.
func Gone(r *http.Request, err error) bool {
	return r.Context().Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}

// WriteError answers with the error's status and {"message": …}.
func WriteError(w http.ResponseWriter, err error) {
	code := Status(err)
	if code == http.StatusNotModified {
		// RFC 9110, section 15.4.5: this status carries no content.
		w.WriteHeader(code)
		return
	}
	body, merr := json.Marshal(common.ErrorResponse{Message: err.Error()})
	if merr != nil {
		body = []byte(`{"message":"the error could not be encoded"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Del("Content-Length")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n'))
}

// Invalid is an error of kind invalid argument (400) with exactly this text.
func Invalid(format string, args ...any) error {
	return kindError{fmt.Errorf(format, args...), errdefs.ErrInvalidArgument}
}

// Unavailable is an error of kind not implemented (501) for a part of the API
// that this release lacks.
func Unavailable(what string) error {
	return kindError{fmt.Errorf("%s is not available in this release of Holdfast", what), errdefs.ErrNotImplemented}
}

// kindError gives an error a kind without adding the kind's name to its
// message.
type kindError struct {
	error
	kind error
}

func (e kindError) Unwrap() []error { return []error{e.error, e.kind} }
