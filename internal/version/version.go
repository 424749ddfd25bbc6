// SPDX-License-Identifier: Apache-2.0

// Package version identifies the build. The Makefile sets the variables through
// the linker; in a binary built without it they are as below. Every binary
// links this package, so it imports nothing.
package version

var (
	// Version is the release, such as "0.1.0" or "0.1.0-12-gabcdef0".
	Version = "dev"
	// Commit is the short hash of the source revision.
	Commit = "unknown"
	// BuildTime is in RFC 3339, UTC. It is the time of the commit, so that
	// equal sources give equal binaries.
	BuildTime = "unknown"
)
