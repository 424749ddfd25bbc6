// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"log/slog"
	"net/http"
	"net/url"
)

// Route is one operation of the API. Path has no version. A segment {name}
// matches one segment, {name...} one or more, because image references contain
// slashes.
type Route struct {
	Method string
	Path   string
	Handle Handler
}

// Handler serves one operation. A returned error becomes the answer, unless the
// head is already sent.
type Handler func(w http.ResponseWriter, r *Request) error

// Request is a request with its version, path and query parsed.
type Request struct {
	*http.Request
	Version Version
	Query   url.Values
	Log     *slog.Logger
	Vars    map[string]string // from the path
}

// Name is the {name} in the path: a name or an ID of the object.
func (r *Request) Name() string { return r.Vars["name"] }
