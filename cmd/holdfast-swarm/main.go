// SPDX-License-Identifier: Apache-2.0

// Command holdfast-swarm is the process that runs a node of a swarm. The daemon starts
// it when the host joins a swarm, and it goes on when the daemon is stopped, killed or
// replaced.
package main

import (
	"flag"
	"fmt"
	"os"

	"holdfast/internal/beside"
	"holdfast/internal/swarm"
	"holdfast/internal/swarmserver"
	"holdfast/internal/version"
)

func main() {
	dataRoot := flag.String("data-root", "", "the daemon's data root")
	execRoot := flag.String("exec-root", "", "the daemon's exec root")
	shown := flag.Bool("version", false, "print the version and exit")
	var settings swarm.Settings
	settings.Flags(flag.CommandLine)
	flag.Parse()
	if *shown {
		fmt.Printf("Holdfast version %s, build %s\n", version.Version, version.Commit)
		return
	}
	if *dataRoot == "" || *execRoot == "" || !beside.StartedByDaemon() {
		fmt.Fprintln(os.Stderr, "holdfast-swarm can only be started by the daemon")
		os.Exit(125)
	}
	err := swarmserver.Run(swarmserver.Options{DataRoot: *dataRoot, ExecRoot: *execRoot, Settings: settings, Ready: os.NewFile(beside.ReadyFD, "ready")})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
