// Command holdfast-shim stands beside one container and keeps it without a
// daemon. The daemon starts it; see docs/protocol/shim.md. It is not meant to
// be started by hand.
package main

import (
	"fmt"
	"os"

	"holdfast/internal/shim/server"
)

// release is set by the build.
var release = "dev"

func main() {
	if len(os.Args) > 1 && (os.Args[1] == "--version" || os.Args[1] == "-v") {
		fmt.Println("holdfast-shim " + release)
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "--takes-image" {
		// A shim asks before it goes on as this program.
		fmt.Println("holdfast-shim " + release)
		if !server.TakesImage(os.Args[2]) {
			os.Exit(1)
		}
		return
	}
	os.Exit(server.Main(release))
}
