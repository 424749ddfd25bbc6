// SPDX-License-Identifier: Apache-2.0

// Package demo is "holdfast demo": it shows on this machine, with a private
// daemon and a root of its own, that a container does not notice the death of
// its daemon. It owns the temporary directory that it creates and everything
// named after it. It removes all of it, and touches no other daemon.
package demo
