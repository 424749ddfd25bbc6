// SPDX-License-Identifier: Apache-2.0

// Package wire reads requests of the Docker Engine API and writes answers:
// versions, query values, JSON bodies, errors and their status, streams, and
// connections taken over from HTTP. It knows no object: the folders beside it
// each serve one kind, and package api combines them.
package wire
