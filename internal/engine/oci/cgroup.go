// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
)

// CgroupMode is how the host's control groups are mounted.
type CgroupMode string

const (
	CgroupNone   CgroupMode = "none"
	CgroupV1     CgroupMode = "v1"
	CgroupHybrid CgroupMode = "hybrid" // controllers on v1, and a v2 tree without controllers
	CgroupV2     CgroupMode = "v2"
)

// Cgroup describes where the host's control groups are mounted.
type Cgroup struct {
	Mode CgroupMode
	// Mounts maps each v1 controller ("memory", "cpu", "name=systemd") to its
	// mount point, and "" to that of the v2 tree.
	Mounts map[string]string
	// Own maps the same keys to this process's own group, relative to the
	// mount point.
	Own map[string]string
}

// Version is "1" or "2", as `info` shows it.
func (c Cgroup) Version() string {
	if c.Mode == CgroupV2 {
		return "2"
	}
	return "1"
}

// parseCgroup parses lines of /proc/self/mountinfo (proc_pid_mountinfo(5)), no
// more than necessary, and the content of /proc/self/cgroup (cgroups(7)).
func parseCgroup(mountinfo iter.Seq[string], own string) Cgroup {
	c := Cgroup{Mode: CgroupNone, Mounts: map[string]string{}, Own: map[string]string{}}
	v1 := false
	for line := range strings.Lines(own) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[0] == "0" && parts[1] == "" {
			c.Own[""] = parts[2]
			continue
		}
		for _, name := range strings.Split(parts[1], ",") {
			c.Own[name] = parts[2]
		}
	}
	missing := func() bool {
		for name := range c.Own {
			if _, seen := c.Mounts[name]; !seen {
				return true
			}
		}
		return len(c.Own) == 0
	}
	for line := range mountinfo {
		if !strings.Contains(line, " - cgroup") {
			continue
		}
		before, after, ok := strings.Cut(line, " - ")
		if !ok {
			continue
		}
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 3 {
			continue
		}
		point := unescapeMount(left[4])
		switch right[0] {
		case "cgroup2":
			// The first one is the host's. Trees of containers may be mounted, too.
			if _, seen := c.Mounts[""]; !seen {
				c.Mounts[""] = point
			}
		case "cgroup":
			for _, opt := range strings.Split(right[2], ",") {
				if opt == "rw" || opt == "ro" || opt == "xattr" || opt == "clone_children" || strings.HasPrefix(opt, "release_agent=") {
					continue
				}
				if _, seen := c.Mounts[opt]; !seen {
					c.Mounts[opt] = point
				}
				if !strings.HasPrefix(opt, "name=") {
					v1 = true
				}
			}
		}
		if !missing() {
			break // stop early: only the first mount of each counts, and containers may have thousands
		}
	}
	_, v2 := c.Mounts[""]
	switch {
	case v1 && v2:
		c.Mode = CgroupHybrid
	case v1:
		c.Mode = CgroupV1
	case v2:
		c.Mode = CgroupV2
	}
	return c
}

// unescapeMount decodes the octal escapes of mountinfo for blank, tab, newline
// and backslash.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// CgroupPath returns the value of linux.cgroupsPath for a container: below its
// parent for the driver "cgroupfs", "slice:holdfast:id" for "systemd". An empty
// parent means the driver's default.
func CgroupPath(driver, parent, id string) string {
	if driver == DriverSystemd {
		if parent == "" {
			parent = "system.slice"
		}
		return parent + ":holdfast:" + id
	}
	if parent == "" {
		parent = "/holdfast"
	}
	// The path is cleaned as an absolute one, so that a parent can't leave the
	// tree.
	return path.Join("/", parent, id)
}

// Drivers of control groups.
const (
	DriverCgroupfs = "cgroupfs"
	DriverSystemd  = "systemd"
)

// DefaultDriver returns the driver to use if none is configured. As in dockerd,
// that is systemd if it is PID 1 and control groups are v2.
func (h Host) DefaultDriver() string {
	if h.Systemd && h.Cgroup.Mode == CgroupV2 {
		return DriverSystemd
	}
	return DriverCgroupfs
}

// CgroupDirs returns the directories of a container's control group: one for each
// v1 controller, and with the key "" the one in the v2 tree. cgroupsPath is a
// value of linux.cgroupsPath.
func (h Host) CgroupDirs(driver, cgroupsPath string) map[string]string {
	rel := cgroupsPath
	if driver == DriverSystemd {
		if parts := strings.SplitN(cgroupsPath, ":", 3); len(parts) == 3 {
			rel = path.Join(expandSlice(parts[0]), parts[1]+"-"+parts[2]+".scope")
		}
	}
	dirs := make(map[string]string, len(h.Cgroup.Mounts))
	for controller, mount := range h.Cgroup.Mounts {
		dirs[controller] = path.Join(mount, path.Join("/", rel))
	}
	return dirs
}

// expandSlice converts a slice's name to its path: each dash is a level
// (systemd.slice(5)).
func expandSlice(slice string) string {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || name == "-" {
		return "/"
	}
	var p, prefix string
	for _, part := range strings.Split(name, "-") {
		if part == "" {
			return "/" + slice
		}
		prefix += part
		p = path.Join(p, prefix+".slice")
		prefix += "-"
	}
	return "/" + p
}

func probeV1(h *Host, f files) {
	at := func(controller, file string) bool {
		m, ok := h.Cgroup.Mounts[controller]
		return ok && f.inGroup(m, h.Cgroup.Own[controller], file)
	}
	has := func(controller string) bool {
		_, ok := h.Cgroup.Mounts[controller]
		return ok
	}
	h.MemoryLimit = has("memory")
	h.SwapLimit = at("memory", "memory.memsw.limit_in_bytes")
	h.MemoryReservation = at("memory", "memory.soft_limit_in_bytes")
	h.MemorySwappiness = at("memory", "memory.swappiness")
	h.OomKillDisable = at("memory", "memory.oom_control")
	h.KernelMemoryTCP = at("memory", "memory.kmem.tcp.limit_in_bytes")
	h.CPUShares = at("cpu", "cpu.shares")
	h.CPUCfs = at("cpu", "cpu.cfs_quota_us")
	h.CPURealtime = at("cpu", "cpu.rt_period_us")
	h.Pids = has("pids")
	h.Devices = has("devices")
	h.BlkioWeight = at("blkio", "blkio.weight") || at("blkio", "blkio.bfq.weight")
	h.BlkioWeightDevice = at("blkio", "blkio.weight_device") || at("blkio", "blkio.bfq.weight_device")
	h.BlkioReadBps = at("blkio", "blkio.throttle.read_bps_device")
	h.BlkioWriteBps = at("blkio", "blkio.throttle.write_bps_device")
	h.BlkioReadIOps = at("blkio", "blkio.throttle.read_iops_device")
	h.BlkioWriteIOps = at("blkio", "blkio.throttle.write_iops_device")
	h.Cpuset = has("cpuset")
	if h.Cpuset {
		m := h.Cgroup.Mounts["cpuset"]
		h.Cpus = f.line(rel(m, "cpuset.cpus"))
		h.Mems = f.line(rel(m, "cpuset.mems"))
	}
}

func probeV2(h *Host, f files) {
	mount, own := h.Cgroup.Mounts[""], h.Cgroup.Own[""]
	controllers := strings.Fields(f.line(rel(mount, own, "cgroup.controllers")))
	if len(controllers) == 0 {
		controllers = strings.Fields(f.line(rel(mount, "cgroup.controllers")))
	}
	has := func(name string) bool { return slices.Contains(controllers, name) }

	h.MemoryLimit = has("memory")
	h.MemoryReservation = h.MemoryLimit
	h.SwapLimit = h.MemoryLimit && f.inGroup(mount, own, "memory.swap.max")
	h.CPUShares, h.CPUCfs = has("cpu"), has("cpu")
	h.Pids = has("pids")
	h.Devices = true // by eBPF, which needs no controller
	io := has("io")
	h.BlkioReadBps, h.BlkioWriteBps, h.BlkioReadIOps, h.BlkioWriteIOps = io, io, io, io
	h.BlkioWeight = io && (f.inGroup(mount, own, "io.weight") || f.inGroup(mount, own, "io.bfq.weight"))
	h.BlkioWeightDevice = h.BlkioWeight
	h.Cpuset = has("cpuset")
	if h.Cpuset {
		for _, dir := range []string{rel(mount, own), rel(mount)} {
			if h.Cpus == "" {
				h.Cpus = f.line(path.Join(dir, "cpuset.cpus.effective"))
			}
			if h.Mems == "" {
				h.Mems = f.line(path.Join(dir, "cpuset.mems.effective"))
			}
		}
	}
}

// inGroup looks for a controller's file at the mount point, in the process's own
// group, in the groups directly below the mount point, and last in a new group.
// Many files don't exist in the root group, and a host that has not run anything
// yet has no other group.
func (f files) inGroup(mount, own, file string) bool {
	if f.exists(rel(mount, file)) || f.exists(rel(mount, own, file)) {
		return true
	}
	entries, _ := fs.ReadDir(f.FS, rel(mount))
	for _, e := range entries {
		if e.IsDir() && f.exists(rel(mount, e.Name(), file)) {
			return true
		}
	}
	if f.group == nil {
		return false
	}
	name, remove, err := f.group(mount)
	if err != nil {
		return false
	}
	defer remove()
	return f.exists(rel(mount, name, file))
}

// makeGroup makes a group below a mount point. remove removes it.
func makeGroup(mount string) (name string, remove func(), err error) {
	dir, err := os.MkdirTemp(mount, "holdfast-probe-")
	if err != nil {
		return "", nil, err
	}
	return path.Base(dir), func() { os.Remove(dir) }, nil
}

// rel joins the parts to a relative path, as fs.FS needs it.
func rel(parts ...string) string {
	p := strings.TrimPrefix(path.Join(append([]string{"/"}, parts...)...), "/")
	if p == "" {
		return "."
	}
	return p
}
