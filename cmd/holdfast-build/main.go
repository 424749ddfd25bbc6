// SPDX-License-Identifier: Apache-2.0

// Command holdfast-build is the process in which Holdfast builds images. The daemon
// starts it for the first build. It goes on when the daemon is stopped, killed or
// replaced, and ends when there is nothing to build.
package main

import (
	"flag"

	"holdfast/internal/beside"
	"holdfast/internal/buildserver"
)

func main() {
	idle := flag.Duration("idle", buildserver.DefaultIdle, "how long the process stays without a build")
	beside.Main("holdfast-build", func(o beside.Options) error { return buildserver.Run(o, *idle) })
}
