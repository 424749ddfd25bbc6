// SPDX-License-Identifier: Apache-2.0

// Package swarm is the daemon's side of swarm mode. The node itself, with its agent
// and on a manager the cluster's store, runs in a process of its own,
// holdfast-swarm, which outlives the daemon. The daemon starts it when the host joins
// a swarm or is in one, starts it again if it ends, and passes it the clients whose
// requests are about the swarm. The process makes and removes the containers of tasks
// over a private socket of the daemon, and observes them at their shims.
//
// A host that is in no swarm has no such process, and the daemon links nothing of
// swarmkit.
//
//	<exec-root>/swarm/               the lock, control socket and log of package beside
//	<exec-root>/swarm/engine.sock    the daemon serves the API to the process here
//	<exec-root>/swarm/status.json    Status, as last written by the process
//	<exec-root>/swarm/secrets/       a tmpfs with the secrets and configs of tasks
//	<data-root>/swarm/               the node's state, in the layout of Docker
package swarm

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/moby/moby/api/types/network"
)

// Dir is the directory of the process in an exec root.
func Dir(execRoot string) string { return filepath.Join(execRoot, "swarm") }

// EnginePath is the socket at which the daemon serves the process.
func EnginePath(execRoot string) string { return filepath.Join(Dir(execRoot), "engine.sock") }

// StateDir is the directory of the node's state in a data root.
func StateDir(dataRoot string) string { return filepath.Join(dataRoot, "swarm") }

// OverlayDir is the folder of the namespaces of overlay networks.
func OverlayDir(execRoot string) string { return filepath.Join(execRoot, "overlay") }

// StateFile is the file in StateDir without which the host is in no swarm.
const StateFile = "docker-state.json"

// Status is what the daemon has to know of a process without asking it.
type Status struct {
	// Release is that of the process.
	Release string `json:"release"`
	// Node is the header Swarm of the API: inactive, pending, active/worker,
	// active/manager, locked or error.
	Node string `json:"node"`
	Settings
}

// Inactive is the value of Status.Node on a host that is in no swarm.
const Inactive = "inactive"

// StatusPath is the path of the Status.
func StatusPath(execRoot string) string { return filepath.Join(Dir(execRoot), "status.json") }

// ReadStatus reads the Status. Without one the node is inactive.
func ReadStatus(execRoot string) Status {
	s := Status{Node: Inactive}
	if text, err := os.ReadFile(StatusPath(execRoot)); err == nil {
		// The file is replaced whole, so it is either absent or complete.
		_ = json.Unmarshal(text, &s)
	}
	return s
}

// TasksPath is the path of requests that only the process makes; see package
// internal/api/tasks.
const TasksPath = "/holdfast/v1/tasks/"

// EventsPath is the path at which the process reports the events of its swarm, as a
// list of event.Message; see package internal/api/tasks.
const EventsPath = "/holdfast/v1/swarm/events"

// OverlaysPath is the path of requests that only the process makes: GET lists the IDs of
// the overlay networks that the daemon knows, PUT with an ID defines one, DELETE removes
// it from this host; see package internal/api/tasks.
const OverlaysPath = "/holdfast/v1/overlays/"

// AttachPath is the path of the daemon's own request to the process to give a container
// an address on a network of the swarm: an AttachRequest, answered by an Attachment.
const AttachPath = "/holdfast/v1/swarm/attachments"

// AttachRequest asks for an address.
type AttachRequest struct {
	Container string     `json:"container"` // its ID
	Network   string     `json:"network"`   // name or ID
	Address   netip.Addr `json:"address"`   // the zero Addr: any
}

// Attachment is the place of a container on a network.
type Attachment struct {
	Network  string     `json:"network"` // its name
	Address  netip.Addr `json:"address"`
	Internal bool       `json:"internal,omitempty"` // the network leads to no other hosts
}

// InspectPath, with the ID of a network, is the path of the daemon's own request to the
// process for what it knows of the nodes and services on a network: a Mesh.
const InspectPath = "/holdfast/v1/swarm/networks/"

// Mesh is what is known of a network beside its definition.
type Mesh struct {
	Peers    []network.PeerInfo             `json:"peers"`
	Services map[string]network.ServiceInfo `json:"services"`
}

// InfoPath is the path of the daemon's own request to the process: the swarm section
// of GET /info.
const InfoPath = "/holdfast/v1/swarm/info"
