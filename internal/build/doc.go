// SPDX-License-Identifier: Apache-2.0

// Package build is the daemon's side of image builds. The builds themselves run in
// a process of their own, holdfast-build, which outlives the daemon: it is started
// for the first request that needs it, gets the sockets of clients whose requests
// are about builds, and ends when it has had nothing to do for a while. The daemon
// lends it its stores (package stores) and makes the networks of RUN steps.
//
// The package knows nothing of BuildKit, which only the other process links.
//
//	<exec-root>/build/lock            held by the build process as long as it lives
//	<exec-root>/build/control.sock    the build process takes over clients here
//	<exec-root>/build/stores.sock     the daemon lends its stores here
//	<exec-root>/build/runc/           the OCI runtime's state of RUN steps
//	<exec-root>/build/net/<id>/       a RUN step's network: its record and its namespace
//	<exec-root>/build/build.log       what the build process has to say
//	<data-root>/build/                the build process's own files
package build

import "path/filepath"

// Names of files; see the package comment.
const (
	lockFile    = "lock"
	controlFile = "control.sock"
	storesFile  = "stores.sock"
	netDir      = "net"
	runcState   = "runc"
	logFile     = "build.log"
)

// Dir is the directory of builds in an exec root.
func Dir(execRoot string) string { return filepath.Join(execRoot, "build") }

// LockPath, ControlPath and StoresPath are the paths that both processes use.
func LockPath(execRoot string) string    { return filepath.Join(Dir(execRoot), lockFile) }
func ControlPath(execRoot string) string { return filepath.Join(Dir(execRoot), controlFile) }
func StoresPath(execRoot string) string  { return filepath.Join(Dir(execRoot), storesFile) }

// RuncDir is the directory of the OCI runtime's state of RUN steps.
func RuncDir(execRoot string) string { return filepath.Join(Dir(execRoot), runcState) }

// StateDir is the directory of the build process's files in a data root.
func StateDir(dataRoot string) string { return filepath.Join(dataRoot, "build") }

// Client is the message by which the daemon passes a client to the build process,
// with the client's socket.
type Client struct {
	// Headers are those that every answer of the API has.
	Headers map[string][]string `json:"headers,omitempty"`
	// Length is the number of bytes that follow the message: the head of the
	// request, and what the client has sent after it so far. They are sent in
	// messages of at most MaxMessage bytes.
	Length int `json:"length"`
	// Stop, if not empty, ends the process instead: StopIdle if it has nothing to do,
	// StopAll in any case.
	Stop string `json:"stop,omitempty"`
}

// The values of Client.Stop.
const (
	StopIdle = "idle"
	StopAll  = "all"
)

// Answer is the build process's answer to a Client. Refused is empty if it has taken
// the client over.
type Answer struct {
	Refused string `json:"refused,omitempty"`
}

// UsagePath is the path of a request that only the daemon makes: what the cache of
// builds takes.
const UsagePath = "/holdfast/v1/build/usage"

// MaxMessage bounds a message on the control socket, in bytes.
const MaxMessage = 64 << 10
