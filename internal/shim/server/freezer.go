package server

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// cgroupRoot is where the hierarchies of cgroups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// frozen reports whether a process is in a frozen cgroup. It is the kernel that
// is asked, for a shim may be killed after the runtime has frozen or thawed the
// container and before that was recorded. known is false where the kernel can't
// be asked, such as when cgroups are mounted elsewhere.
func frozen(pid int) (is, known bool) {
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
			// Of a hybrid host this one has no freezer that is used; it comes last.
			state, err := os.ReadFile(cgroupRoot + path + "/cgroup.events")
			if err == nil {
				return bytes.Contains(state, []byte("frozen 1")), true
			}
		}
	}
	return false, false
}
