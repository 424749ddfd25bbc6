// Package container is what a container is: its Spec (what was asked for),
// its State (what was seen), and the pure functions that lead from one to the
// other, Step and Reconcile. It imports nothing that could touch a process, a
// file or a clock, so that every rule of a container's life can be read and
// tested as a table.
package container

import (
	"encoding/json"
	"time"
)

// SpecSchema is the number that this release writes into spec.json. A file
// with a higher number was written by a newer release and is refused.
const SpecSchema = 1

// Desired is what the user last asked of a container.
type Desired string

const (
	// DesiredCreated: made, never started.
	DesiredCreated Desired = "created"
	// DesiredRunning: started; whether it restarts is the restart policy's.
	DesiredRunning Desired = "running"
	// DesiredStopped: stopped by the user; policy unless-stopped keeps it so.
	DesiredStopped Desired = "stopped"
	// DesiredRemoved: removal has begun and is finished whatever happens.
	DesiredRemoved Desired = "removed"
)

// RestartPolicy is Docker's, under its names: "no" (or empty), "always",
// "unless-stopped" and "on-failure", the last with an optional limit.
type RestartPolicy struct {
	Name       string `json:"name,omitempty"`
	MaxRetries int    `json:"maxRetries,omitempty"`
}

// Spec is the desired state of one container, as it stands in
// containers/<id>/spec.json. Only the daemon writes it.
type Spec struct {
	Schema  int       `json:"schema"`
	ID      string    `json:"id"`
	Name    string    `json:"name"` // without the leading slash
	Created time.Time `json:"created"`
	Desired Desired   `json:"desired"`

	// Life counts the starts that the daemon asked for. A shim carries the
	// life that it was started for, so that records of an earlier life are
	// told from the present one's.
	Life uint64 `json:"life,omitempty"`

	Image   Image         `json:"image"`
	Runtime string        `json:"runtime"` // name among the daemon's runtimes
	Restart RestartPolicy `json:"restart"`

	AutoRemove bool   `json:"autoRemove,omitempty"`
	StopSignal string `json:"stopSignal,omitempty"`
	// StopTimeout is in seconds; -1 waits without end; nil is the default of 10.
	StopTimeout *int `json:"stopTimeout,omitempty"`

	// Sandbox is what the network package gave to the present life: addresses,
	// host ports and how to find them in the kernel. The container keeps it
	// whatever the daemon's options become.
	Sandbox json.RawMessage `json:"sandbox,omitempty"`

	// RemoveVolumes: the removal that Desired asks for takes the anonymous
	// volumes along.
	RemoveVolumes bool `json:"removeVolumes,omitempty"`

	// Committing: the container is frozen, or about to be, for as long as a
	// commit takes. A daemon that finds this thaws it.
	Committing bool `json:"committing,omitempty"`

	// Failure is set when a start failed before a shim could record anything,
	// or when nobody saw the end of the present life. Of this life no other
	// record counts.
	Failure *Failure `json:"failure,omitempty"`

	// API is the container as it was asked for over the API, with the image's
	// defaults merged in: the types of github.com/moby/moby/api.
	API json.RawMessage `json:"api"`

	// Mounts are the resolved mount points, in the API's form.
	Mounts json.RawMessage `json:"mounts,omitempty"`

	// CgroupDriver and CgroupParent are those that the container was created
	// with.
	CgroupDriver string `json:"cgroupDriver,omitempty"`
	CgroupParent string `json:"cgroupParent,omitempty"`

	// ExecRoot is the exec root of the daemon that started the present life:
	// the run directory and the runtime's state are below it. Empty is the
	// daemon's own, which all had before it was recorded.
	ExecRoot string `json:"execRoot,omitempty"`
}

// Image is the image that a container was made of.
type Image struct {
	Ref        string `json:"ref"`        // as the user named it
	ID         string `json:"id"`         // digest of the image's target
	Manifest   string `json:"manifest"`   // digest of the platform's manifest
	Platform   string `json:"platform"`   // os/arch[/variant]
	Snapshot   string `json:"snapshot"`   // key of the image's top layer
	Storage    string `json:"storage"`    // snapshotter: overlayfs or native
	LayerBytes int64  `json:"layerBytes"` // size of the image's layers, unpacked

	// Of the manifest; absent in records of earlier releases.
	ManifestType string `json:"manifestType,omitempty"`
	ManifestSize int64  `json:"manifestSize,omitempty"`
}

// Failure is a start that failed, in the words that inspect shows.
type Failure struct {
	ExitCode int       `json:"exitCode"`
	Error    string    `json:"error"`
	Time     time.Time `json:"time"`
	// Lost: the container ran, and Time is when it was found to have ended.
	Lost bool `json:"lost,omitempty"`
}
