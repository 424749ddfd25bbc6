// SPDX-License-Identifier: Apache-2.0

// Package build is the daemon's side of image builds. The builds themselves run in
// a process of their own, holdfast-build, which outlives the daemon: it is started
// for the first request that needs it, gets the sockets of clients whose requests
// are about builds, and ends when it has had nothing to do for a while. The daemon
// lends it its stores (package stores) and makes the networks of RUN steps.
//
// The package knows nothing of BuildKit, which only the other process links.
//
//	<exec-root>/build/                the lock, control socket and log of package beside
//	<exec-root>/build/stores.sock     the daemon lends its stores here
//	<exec-root>/build/runc/           the OCI runtime's state of RUN steps
//	<exec-root>/build/net/<id>/       a RUN step's network: its record and its namespace
//	<data-root>/build/                the build process's own files
package build

import "path/filepath"

// Names of files; see the package comment.
const (
	storesFile = "stores.sock"
	netDir     = "net"
	runcState  = "runc"
	logFile    = "build.log"
)

// Dir is the directory of builds in an exec root.
func Dir(execRoot string) string { return filepath.Join(execRoot, "build") }

// StoresPath is the path at which the daemon lends its stores.
func StoresPath(execRoot string) string { return filepath.Join(Dir(execRoot), storesFile) }

// RuncDir is the directory of the OCI runtime's state of RUN steps.
func RuncDir(execRoot string) string { return filepath.Join(Dir(execRoot), runcState) }

// StateDir is the directory of the build process's files in a data root.
func StateDir(dataRoot string) string { return filepath.Join(dataRoot, "build") }

// UsagePath is the path of a request that only the daemon makes: what the cache of
// builds takes.
const UsagePath = "/holdfast/v1/build/usage"
