// SPDX-License-Identifier: Apache-2.0

// Command holdfast-build is the process in which Holdfast builds images. The daemon
// starts it for the first build. It goes on when the daemon is stopped, killed or
// replaced, and ends when there is nothing to build.
package main

import (
	"flag"
	"fmt"
	"os"

	"holdfast/internal/beside"
	"holdfast/internal/buildserver"
	"holdfast/internal/version"
)

func main() {
	dataRoot := flag.String("data-root", "", "the daemon's data root")
	execRoot := flag.String("exec-root", "", "the daemon's exec root")
	idle := flag.Duration("idle", buildserver.DefaultIdle, "how long the process stays without a build")
	shown := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *shown {
		fmt.Printf("Holdfast version %s, build %s\n", version.Version, version.Commit)
		return
	}
	if *dataRoot == "" || *execRoot == "" || !beside.StartedByDaemon() {
		fmt.Fprintln(os.Stderr, "holdfast-build can only be started by the daemon")
		os.Exit(125)
	}
	err := buildserver.Run(buildserver.Options{
		DataRoot: *dataRoot, ExecRoot: *execRoot, Ready: os.NewFile(beside.ReadyFD, "ready"), Idle: *idle,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
