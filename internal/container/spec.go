// SPDX-License-Identifier: Apache-2.0

// Package container defines what a container is: its Spec (the desired state),
// its State (the observed one), and the pure functions that lead from one to the
// other, Step and Reconcile. It imports nothing that could access a process, a
// file or a clock, so that every rule of a container's lifecycle can be read and
// tested as a table.
package container

import (
	"encoding/json"
	"time"
)

// SpecSchema is the number that this release writes into spec.json. A file
// with a higher number was written by a newer release and is refused.
const SpecSchema = 1

// Desired is what a user last requested of a container.
type Desired string

const (
	// DesiredCreated: created, never started.
	DesiredCreated Desired = "created"
	// DesiredRunning: started. After it has ended, the restart policy decides
	// whether it is started again.
	DesiredRunning Desired = "running"
	// DesiredStopped: stopped by the user. With the policy unless-stopped no
	// daemon starts it again.
	DesiredStopped Desired = "stopped"
	// DesiredRemoved: removal has begun. A daemon that finds this finishes it.
	DesiredRemoved Desired = "removed"
)

// RestartPolicy is Docker's restart policy, under Docker's names: "no" (or
// empty), "always", "unless-stopped" and "on-failure", which may have a limit.
type RestartPolicy struct {
	Name       string `json:"name,omitempty"`
	MaxRetries int    `json:"maxRetries,omitempty"`
}

// Spec is the desired state of one container, as stored in
// containers/<id>/spec.json. Only the daemon writes it.
type Spec struct {
	Schema  int       `json:"schema"`
	ID      string    `json:"id"`
	Name    string    `json:"name"` // without the leading slash
	Created time.Time `json:"created"`
	Desired Desired   `json:"desired"`

	// Life counts the starts by the daemon. A shim records the life that it was
	// started for, so that records of an earlier life are not taken for records of
	// the present one.
	Life uint64 `json:"life,omitempty"`

	Image   Image         `json:"image"`
	Runtime string        `json:"runtime"` // name among the daemon's runtimes
	Restart RestartPolicy `json:"restart"`

	// Task is the ID of the swarm task that the container belongs to. Only the
	// process of the swarm node makes such containers, which no label can pretend.
	Task string `json:"task,omitempty"`

	AutoRemove bool   `json:"autoRemove,omitempty"`
	StopSignal string `json:"stopSignal,omitempty"`
	// StopTimeout is in seconds; -1 means no limit; nil is the default of 10.
	StopTimeout *int `json:"stopTimeout,omitempty"`

	// Sandbox is what the network package allocated for the present life:
	// addresses, host ports and how to find them in the kernel. A later change of
	// the daemon's options does not change it.
	Sandbox json.RawMessage `json:"sandbox,omitempty"`

	// RemoveVolumes: the removal that Desired asks for removes the anonymous
	// volumes, too.
	RemoveVolumes bool `json:"removeVolumes,omitempty"`

	// Committing: a commit has frozen the container or is about to. A daemon that
	// finds this thaws the container.
	Committing bool `json:"committing,omitempty"`

	// Failure is set when a start failed before a shim could record anything, or
	// when no process observed the end of the present life. It takes precedence
	// over any other record of this life.
	Failure *Failure `json:"failure,omitempty"`

	// Ran is the last run of the lives before the present one. It is nil if the
	// container's process had never run when this life began.
	Ran *LastRun `json:"ran,omitempty"`

	// API is the API request that created the container, with the image's defaults
	// merged in: the types of github.com/moby/moby/api.
	API json.RawMessage `json:"api"`

	// Mounts are the resolved mount points, in the API's form.
	Mounts json.RawMessage `json:"mounts,omitempty"`

	// CgroupDriver and CgroupParent have the values that were in force when the
	// container was created.
	CgroupDriver string `json:"cgroupDriver,omitempty"`
	CgroupParent string `json:"cgroupParent,omitempty"`

	// ExecRoot is the exec root of the daemon that started the present life: the
	// run directory and the runtime's state are below it. It is empty in records
	// of early releases, and then means the exec root of the present daemon.
	ExecRoot string `json:"execRoot,omitempty"`
}

// Image is the image that a container was created from.
type Image struct {
	Ref        string `json:"ref"`        // as the user named it
	ID         string `json:"id"`         // digest of the image's target
	Manifest   string `json:"manifest"`   // digest of the platform's manifest
	Platform   string `json:"platform"`   // os/arch[/variant]
	Snapshot   string `json:"snapshot"`   // key of the image's top layer
	Storage    string `json:"storage"`    // snapshotter: overlayfs or native
	LayerBytes int64  `json:"layerBytes"` // size of the image's layers, unpacked

	// Type and size of the manifest. Records of earlier releases lack them.
	ManifestType string `json:"manifestType,omitempty"`
	ManifestSize int64  `json:"manifestSize,omitempty"`
}

// LastRun is a run of the container's process.
type LastRun struct {
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	ExitCode int       `json:"exitCode,omitempty"`
}

// Failure is a start that failed, with the message that inspect shows.
type Failure struct {
	ExitCode int       `json:"exitCode"`
	Error    string    `json:"error"`
	Time     time.Time `json:"time"`
	// Lost: the container ran, and Time is when the daemon found that it had ended.
	Lost bool `json:"lost,omitempty"`
}
