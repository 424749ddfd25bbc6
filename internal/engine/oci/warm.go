// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// WarmCgroups prepares the kernel for moving a process into a cgroup soon. For a
// move the kernel takes a lock (cgroup_threadgroup_rwsem). It first waits for an
// RCU grace period, 5 to 15 ms, unless the lock was taken within the last 20 ms
// or so. The OCI runtime would wait for it in the middle of its work; when it is
// taken here, the wait overlaps with the daemon's other work. It moves this
// process to the cgroup that it is in already, which changes nothing. A failure
// only costs time.
func (h Host) WarmCgroups() {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	// Read the current group: with an old one the process would really be moved.
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
