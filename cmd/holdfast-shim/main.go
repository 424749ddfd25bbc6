// SPDX-License-Identifier: Apache-2.0

// Command holdfast-shim supervises one container, independently of the daemon.
// The daemon starts it; see docs/protocol/shim.md. It is not meant to be started
// by hand.
package main

import (
	"fmt"
	"os"

	"holdfast/internal/shim/handover"
	"holdfast/internal/shim/server"
)

// release is set by the build.
var release = "dev"

func main() {
	if len(os.Args) > 1 && (os.Args[1] == "--version" || os.Args[1] == "-v") {
		fmt.Println("holdfast-shim " + release)
		return
	}
	if len(os.Args) == 3 && os.Args[1] == handover.AcceptFlag {
		// A running shim asks this before it re-execs this binary.
		fmt.Println("holdfast-shim " + release)
		if !handover.AcceptsText(os.Args[2]) {
			os.Exit(1)
		}
		return
	}
	os.Exit(server.Main(release))
}
