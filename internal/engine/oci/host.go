// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"bufio"
	"context"
	"io/fs"
	"iter"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
)

// Host describes what this kernel and this machine support. It is a plain value,
// so tests can set it.
type Host struct {
	Kernel    string // release, as uname -r prints it
	OS        string // PRETTY_NAME of os-release
	OSVersion string // VERSION_ID of os-release
	Arch      string // GOARCH

	NumCPU   int    // processors that this process may use
	MemTotal int64  // bytes
	Systemd  bool   // PID 1 is systemd
	Cpus     string // CPUs that a cpuset may name, as a list "0-3,5"
	Mems     string // memory nodes, likewise

	Cgroup Cgroup

	// What the cgroup controllers can limit.
	MemoryLimit, SwapLimit, MemoryReservation   bool
	MemorySwappiness, OomKillDisable            bool
	KernelMemoryTCP                             bool
	CPUShares, CPUCfs, CPURealtime              bool
	Cpuset, Pids, Devices                       bool
	BlkioWeight, BlkioWeightDevice              bool
	BlkioReadBps, BlkioWriteBps                 bool
	BlkioReadIOps, BlkioWriteIOps               bool
	Seccomp, AppArmor, SELinux                  bool
	CgroupNamespaces, UserNamespaces            bool
	InUserNamespace                             bool // this process is itself in one
	RecursiveReadOnly                           bool // mount_setattr(2), Linux 5.12
	IPv4ForwardingDisabled                      bool
	PingGroupRange, UnprivilegedPortStart, IPv6 bool // these sysctls exist
	// Caps are the capabilities that this process can pass on, in the kernel's
	// order, named like "CAP_CHOWN".
	Caps []string
	// OOMScoreAdj is that of this process.
	OOMScoreAdj int
	// ThermalPaths are per-CPU files that are masked in containers, because they
	// reveal the load of other tenants.
	ThermalPaths []string
}

// Probe examines the host that this process runs on. What can't be read counts as
// missing.
func Probe(context.Context) Host {
	return probe(os.DirFS("/"), makeGroup)
}

// probe reads all files below root, so that tests can define any host. With a nil
// group it makes no control groups.
func probe(root fs.FS, group func(mount string) (name string, remove func(), err error)) Host {
	f := files{root, group}
	h := Host{Arch: runtime.GOARCH}

	h.Kernel = f.line("proc/sys/kernel/osrelease")
	h.OS, h.OSVersion = osRelease(f)
	h.MemTotal = f.field("proc/meminfo", "MemTotal:") << 10
	h.Systemd = f.isDir("run/systemd/system")

	status := f.pairs("proc/self/status")
	h.NumCPU = max(1, len(parseList(status["Cpus_allowed_list"])))
	h.Caps = capabilities(status["CapBnd"])
	_, h.Seccomp = status["Seccomp"]

	h.OOMScoreAdj, _ = strconv.Atoi(f.line("proc/self/oom_score_adj"))
	h.AppArmor = strings.HasPrefix(f.line("sys/module/apparmor/parameters/enabled"), "Y") &&
		f.exists("sys/kernel/security/apparmor/profiles")
	h.SELinux = f.exists("sys/fs/selinux/enforce")
	h.CgroupNamespaces = f.exists("proc/self/ns/cgroup")
	h.UserNamespaces = f.exists("proc/self/ns/user") && f.line("proc/sys/user/max_user_namespaces") != "0"
	h.InUserNamespace = inUserNamespace(f.line("proc/self/uid_map"))
	h.RecursiveReadOnly = kernelAtLeast(h.Kernel, 5, 12)
	h.IPv4ForwardingDisabled = f.line("proc/sys/net/ipv4/ip_forward") != "1"
	h.PingGroupRange = f.exists("proc/sys/net/ipv4/ping_group_range")
	h.UnprivilegedPortStart = f.exists("proc/sys/net/ipv4/ip_unprivileged_port_start")
	h.IPv6 = f.exists("proc/sys/net/ipv6")
	h.ThermalPaths = thermalPaths(f)

	h.Cgroup = parseCgroup(f.lines("proc/self/mountinfo"), f.read("proc/self/cgroup"))
	if h.Cgroup.Mode == CgroupV2 {
		probeV2(&h, f)
	} else {
		probeV1(&h, f)
	}
	return h
}

// Forwarding returns h with the current IPv4ForwardingDisabled: the daemon itself
// switches forwarding on, and other programs may switch it off.
func (h Host) Forwarding() Host {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	h.IPv4ForwardingDisabled = err != nil || strings.TrimSpace(string(b)) != "1"
	return h
}

// HasCap reports whether this process can pass on the capability.
func (h Host) HasCap(name string) bool { return slices.Contains(h.Caps, name) }

// InfoWarnings returns the warnings of `info` about what this host does not
// support.
func (h Host) InfoWarnings() []string {
	var w []string
	lacks := func(have bool, text string) {
		if !have {
			w = append(w, "WARNING: "+text)
		}
	}
	lacks(h.MemoryLimit, "No memory limit support")
	lacks(h.SwapLimit, "No swap limit support")
	if h.Cgroup.Mode != CgroupV2 {
		lacks(h.OomKillDisable, "No oom kill disable support")
	}
	lacks(h.CPUCfs, "No cpu cfs quota support")
	lacks(h.CPUCfs, "No cpu cfs period support")
	lacks(h.CPUShares, "No cpu shares support")
	lacks(h.Cpuset, "No cpuset support")
	lacks(h.Pids, "No pids limit support")
	if h.Cgroup.Mode == CgroupV2 {
		lacks(h.BlkioWeight, "No io.weight support")
		lacks(h.BlkioWeightDevice, "No io.weight (per device) support")
		lacks(h.BlkioReadBps, "No io.max (rbps) support")
		lacks(h.BlkioWriteBps, "No io.max (wbps) support")
		lacks(h.BlkioReadIOps, "No io.max (riops) support")
		lacks(h.BlkioWriteIOps, "No io.max (wiops) support")
	} else {
		lacks(h.BlkioWeight, "No blkio weight support")
		lacks(h.BlkioWeightDevice, "No blkio weight_device support")
		lacks(h.BlkioReadBps, "No blkio throttle.read_bps_device support")
		lacks(h.BlkioWriteBps, "No blkio throttle.write_bps_device support")
		lacks(h.BlkioReadIOps, "No blkio throttle.read_iops_device support")
		lacks(h.BlkioWriteIOps, "No blkio throttle.write_iops_device support")
	}
	lacks(!h.IPv4ForwardingDisabled, "IPv4 forwarding is disabled")
	return w
}

func osRelease(f files) (pretty, version string) {
	text := f.read("etc/os-release")
	if text == "" {
		text = f.read("usr/lib/os-release")
	}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		if unquoted, err := strconv.Unquote(v); err == nil {
			v = unquoted
		}
		switch k {
		case "PRETTY_NAME":
			pretty = strings.Trim(v, "'")
		case "VERSION_ID":
			version = strings.Trim(v, "'")
		}
	}
	if pretty == "" {
		pretty = "Linux"
	}
	return pretty, version
}

// capabilities returns the names for the bits of a mask in the format of
// /proc/PID/status.
func capabilities(mask string) []string {
	bits, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		return nil
	}
	var names []string
	for _, c := range capability.ListKnown() {
		if c < 64 && bits&(1<<uint(c)) != 0 {
			names = append(names, capName(c))
		}
	}
	return names
}

func capName(c capability.Cap) string { return "CAP_" + strings.ToUpper(c.String()) }

// inUserNamespace evaluates the first line of /proc/self/uid_map: the initial
// namespace maps all 2^32-1 IDs onto themselves.
func inUserNamespace(uidMap string) bool {
	fields := strings.Fields(uidMap)
	return len(fields) == 3 && !(fields[0] == "0" && fields[1] == "0" && fields[2] == "4294967295")
}

// kernelAtLeast compares the first two numbers of a release.
func kernelAtLeast(release string, major, minor int) bool {
	a, rest, _ := strings.Cut(release, ".")
	b := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	x, err := strconv.Atoi(a)
	if err != nil {
		return false
	}
	y, _ := strconv.Atoi(b)
	return x > major || x == major && y >= minor
}

func thermalPaths(f files) []string {
	var paths []string
	for _, cpu := range parseList(f.line("sys/devices/system/cpu/possible")) {
		p := "sys/devices/system/cpu/cpu" + strconv.Itoa(cpu) + "/thermal_throttle"
		if f.exists(p) {
			paths = append(paths, "/"+p)
		}
	}
	return paths
}

// files reads small files of a tree. A missing file reads as "".
type files struct {
	fs.FS
	group func(mount string) (name string, remove func(), err error)
}

func (f files) read(name string) string {
	b, err := fs.ReadFile(f.FS, name)
	if err != nil {
		return ""
	}
	return string(b)
}

// lines returns a file's lines, read lazily.
func (f files) lines(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		file, err := f.Open(name)
		if err != nil {
			return
		}
		defer file.Close()
		r := bufio.NewReader(file)
		for {
			line, err := r.ReadString('\n')
			if line != "" && !yield(line) || err != nil {
				return
			}
		}
	}
}

// line returns the first line of a file.
func (f files) line(name string) string {
	s, _, _ := strings.Cut(f.read(name), "\n")
	return strings.TrimSpace(s)
}

func (f files) exists(name string) bool {
	_, err := fs.Stat(f.FS, name)
	return err == nil
}

func (f files) isDir(name string) bool {
	st, err := fs.Stat(f.FS, name)
	return err == nil && st.IsDir()
}

// pairs parses "Key:\tvalue" lines.
func (f files) pairs(name string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(f.read(name)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			m[k] = strings.TrimSpace(v)
		}
	}
	return m
}

// field returns the number after a key at the beginning of a line.
func (f files) field(name, key string) int64 {
	for line := range strings.Lines(f.read(name)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[0] == key {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n
		}
	}
	return 0
}
