// SPDX-License-Identifier: Apache-2.0

// Command holdfast-build is the process in which Holdfast builds images. The daemon
// starts it for the first build. It goes on when the daemon is stopped, killed or
// replaced, and ends when there is nothing to build.
package main

import (
	"flag"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"holdfast/internal/buildserver"
	"holdfast/internal/version"
)

// readyFD is the descriptor of the pipe to the daemon that started the process.
const readyFD = 3

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
	var st unix.Stat_t
	if err := unix.Fstat(readyFD, &st); *dataRoot == "" || *execRoot == "" || err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		fmt.Fprintln(os.Stderr, "holdfast-build can only be started by the daemon")
		os.Exit(125)
	}
	unix.CloseOnExec(readyFD)
	err := buildserver.Run(buildserver.Options{
		DataRoot: *dataRoot, ExecRoot: *execRoot, Ready: os.NewFile(readyFD, "ready"), Idle: *idle,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
