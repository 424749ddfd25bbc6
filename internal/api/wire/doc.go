// Package wire is how a request of the Docker Engine API is read and how it is
// answered: versions, query values, JSON bodies, errors and their status,
// streams, and connections taken over from HTTP. It knows no object: the
// folders beside it each serve one kind, and package api puts them together.
package wire
