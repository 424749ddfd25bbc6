// SPDX-License-Identifier: Apache-2.0

// Package failpoint ends a process at a named instruction, so that tests can
// check what remains. It is part of every build, so that the tested binary is the
// released one. It owns no state and affects only its own process.
//
// A daemon that is started with HOLDFAST_FAILPOINT=NAME in its environment kills
// itself with SIGKILL when it reaches the point of that name. No deferred
// function runs, no buffer is flushed and no client gets an answer. A point that
// is not armed costs one comparison. Points are placed where state changes
// between persisted, done and recorded; test/crash goes through all of them.
package failpoint

import (
	"os"
	"syscall"
)

var armed = os.Getenv("HOLDFAST_FAILPOINT")

// Here is the failpoint with the given name. It does not return if the point is
// armed.
func Here(name string) {
	if name != armed || armed == "" {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal may be delivered to another thread first
}
