// SPDX-License-Identifier: Apache-2.0

// Command holdfast-swarm is the process that runs a node of a swarm. The daemon starts
// it when the host joins a swarm, and it goes on when the daemon is stopped, killed or
// replaced.
package main

import (
	"holdfast/internal/beside"
	"holdfast/internal/swarmserver"
)

func main() { beside.Main("holdfast-swarm", swarmserver.Run) }
