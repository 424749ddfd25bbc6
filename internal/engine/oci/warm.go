package oci

import (
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// WarmCgroups prepares the kernel for a process that is soon moved into a
// cgroup. For a move the kernel takes a lock (cgroup_threadgroup_rwsem), which
// first waits out an RCU grace period, 5 to 15 ms, unless one was taken within
// the last 20 ms or so. The OCI runtime would wait for it in the middle of its
// work; taken here, the waiting is done beside ours. The move that takes it is
// that of this process to where it is already, and changes nothing. What fails
// costs time only.
func (h Host) WarmCgroups() {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	// As it is now: to a place of the past the process would be moved.
	now := parseCgroup(strings.Lines(""), string(own)).Own
	for _, controller := range slices.Sorted(maps.Keys(h.Cgroup.Mounts)) {
		at, ok := now[controller]
		if !ok || at != h.Cgroup.Own[controller] {
			continue
		}
		f, err := os.OpenFile(path.Join(h.Cgroup.Mounts[controller], at, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			continue // another tree may be writable
		}
		_, err = f.WriteString("0")
		f.Close()
		if err == nil {
			return
		}
	}
}
