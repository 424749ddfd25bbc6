// SPDX-License-Identifier: Apache-2.0

// Command holdfast is the command line of the container engine.
package main

import (
	"os"

	"holdfast/internal/cli"
)

func main() { os.Exit(cli.Main()) }
