// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"holdfast/internal/shim/proto"
)

// When the first process of a PID namespace ends, the kernel sends SIGKILL to all others
// in it, and keeps the first one until they have ended. A frozen process does not end
// before it is thawed (cgroup v1). So a paused container that has joined the namespace
// of another would keep that one from ending, for as long as it is paused: no stop, kill
// or removal of the other would be answered. A process that was sent SIGKILL can do
// nothing any more but end, so the container is thawed for it.

// doomedEach is the time between two looks at a paused container that has joined a PID
// namespace.
const doomedEach = time.Second

// watchDoomed thaws the container of a run if its process was sent SIGKILL. It is
// called when the container is paused, and watches until it is not.
func (t *stops) watchDoomed(r *run) {
	if r == nil || !slices.ContainsFunc(t.boot.Join, func(j proto.Join) bool { return slices.Contains(j.Kinds, proto.JoinPID) }) {
		return
	}
	go func() {
		tick := time.NewTicker(doomedEach)
		defer tick.Stop()
		for {
			select {
			case <-r.proc.exited:
				return
			case <-tick.C:
			}
			if t.rec.snapshot().Status != proto.StatusPaused {
				return
			}
			if !sentKill(r.proc.pid) {
				continue
			}
			t.gate.enter()
			err := t.verbs.thaw(syscall.SIGKILL)
			t.gate.leave()
			if err == nil {
				return
			}
			logf("thaw a container that was killed: %v", err)
		}
	}()
}

// sentKill reports whether a process was sent SIGKILL, which it has not received.
func sentKill(pid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for _, key := range []string{"\nSigPnd:\t", "\nShdPnd:\t"} {
		_, rest, _ := bytes.Cut(status, []byte(key))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		if mask, err := strconv.ParseUint(string(line), 16, 64); err == nil && mask&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
