package wire

import (
	"log/slog"
	"net/http"
	"net/url"
)

// Route is one operation of the API. Path is without the version; a segment
// {name} takes one segment, {name...} one or more (image references contain
// slashes).
type Route struct {
	Method string
	Path   string
	Handle Handler
}

// Handler serves one operation. An error that it returns becomes the answer,
// unless the head is already sent.
type Handler func(w http.ResponseWriter, r *Request) error

// Request is a request whose version, path and query have been taken apart.
type Request struct {
	*http.Request
	Version Version
	Query   url.Values
	Log     *slog.Logger
	Vars    map[string]string // from the path
}

// Name is the {name} of the path: a name or an ID of the object.
func (r *Request) Name() string { return r.Vars["name"] }
