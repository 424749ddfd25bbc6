// SPDX-License-Identifier: Apache-2.0

package overlay

import "time"

// Definition is an overlay network as the process of the swarm describes it to the
// daemon, and as both store it.
type Definition struct {
	Network
	Name       string
	Created    time.Time
	Internal   bool // nothing leaves it
	Attachable bool // also for containers that are no tasks
	Ingress    bool // of the routing mesh
	Options    map[string]string
	Labels     map[string]string
	// Names is the file of the names on the network, which the process writes.
	Names string
	// Services is the file of the virtual addresses on the network, a list of
	// swarmlb.Service, which the process writes. A container that starts gets them
	// before its program runs.
	Services string
}
