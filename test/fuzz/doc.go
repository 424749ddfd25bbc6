// SPDX-License-Identifier: Apache-2.0

// Package fuzz sends hostile requests to a live daemon: every operation of the
// API, with a query, a body and headers that are correct, nearly correct and
// wrong. Whatever the request, the daemon must answer in time, blame the client
// and not itself, stay alive, not grow, and not affect a container that no
// request refers to.
//
// The daemon has a network namespace of its own, so that requested networks and
// ports don't affect the host.
package fuzz
