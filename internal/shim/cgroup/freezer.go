// SPDX-License-Identifier: Apache-2.0

// Package cgroup asks the kernel about a container's cgroups: whether they are
// frozen, and which processes were killed for lack of memory. It changes nothing in
// them; that is the OCI runtime's business.
package cgroup

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// cgroupRoot is where the cgroup hierarchies are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// Frozen reports whether a process is in a frozen cgroup. It asks the kernel,
// because a shim may be killed after the runtime has frozen or thawed the container
// and before that was recorded. known is false if the kernel can't be asked, such
// as when cgroups are mounted elsewhere.
func Frozen(pid int) (is, known bool) {
	list, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false, false
	}
	for line := range strings.Lines(string(list)) {
		hierarchy, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, _ := strings.Cut(path, ":")
		switch {
		case controllers == "freezer":
			state, err := os.ReadFile(cgroupRoot + "/freezer" + path + "/freezer.state")
			if err == nil {
				return !bytes.HasPrefix(state, []byte("THAWED")), true
			}
		case hierarchy == "0":
			// On a hybrid host this hierarchy comes last, and its freezer is unused.
			state, err := os.ReadFile(cgroupRoot + path + "/cgroup.events")
			if err == nil {
				return bytes.Contains(state, []byte("frozen 1")), true
			}
		}
	}
	return false, false
}
