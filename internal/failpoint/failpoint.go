// Package failpoint lets a process die at a named instruction, so that tests
// can see what is found after it. It is part of every build: what is tested is
// what is shipped. It owns nothing and touches nothing but its own process.
//
// A daemon that is started with HOLDFAST_FAILPOINT=NAME in its environment
// kills itself with SIGKILL when it comes to the point of that name: no
// deferred function runs, no buffer is flushed, no client gets an answer. In
// all others a point costs a comparison. Points stand at the edges of what is
// persisted, done and recorded; test/crash goes through every one of them.
package failpoint

import (
	"os"
	"syscall"
)

var armed = os.Getenv("HOLDFAST_FAILPOINT")

// Here is the point of a name. It does not return if the point is armed.
func Here(name string) {
	if name != armed || armed == "" {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal may reach another thread first
}
