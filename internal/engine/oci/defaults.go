// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultShmSize is the default size of /dev/shm, in bytes.
const DefaultShmSize = 64 << 20

// Defaults are the daemon's options that concern containers.
type Defaults struct {
	CgroupDriver string // DriverCgroupfs or DriverSystemd
	CgroupParent string // empty means the driver's default

	// Modes and sizes for containers that request none. Empty or 0 means Docker's
	// default.
	IpcMode      container.IpcMode
	CgroupnsMode container.CgroupnsMode
	ShmSize      int64 // bytes
	LogConfig    container.LogConfig

	Ulimits         map[string]*container.Ulimit
	NoNewPrivileges bool
	// SeccompProfile is "" or "builtin" for the built-in profile, "unconfined", or
	// the JSON text of a profile.
	SeccompProfile string
	SELinux        bool // --selinux-enabled

	Runtime  string   // name of the default runtime
	Runtimes []string // names of all runtimes

	Init     bool   // --init for all
	InitPath string // path of the init to mount; if empty, see FindInit

	// UIDMappings and GIDMappings are the mappings of --userns-remap.
	UIDMappings, GIDMappings []specs.LinuxIDMapping
}

// remapped reports whether a container with this mode gets a user namespace.
func (d Defaults) remapped(m container.UsernsMode) bool {
	return len(d.UIDMappings) > 0 && m.IsPrivate()
}

// Adapt completes a request with the daemon's defaults, as far as the host
// supports them, so that inspect shows the effective values. Call it once, when
// the container is created, before Validate.
func Adapt(h Host, hc *container.HostConfig, d Defaults) {
	boundShares(&hc.Resources)
	if hc.Memory > 0 && hc.MemorySwap == 0 {
		hc.MemorySwap = hc.Memory * 2
	}
	if hc.PidsLimit != nil && *hc.PidsLimit <= 0 {
		hc.PidsLimit = nil // "unlimited", in the forms that clients send
	}
	if hc.ShmSize == 0 {
		hc.ShmSize = d.ShmSize
		if hc.ShmSize == 0 {
			hc.ShmSize = DefaultShmSize
		}
	}
	if hc.IpcMode.IsEmpty() {
		hc.IpcMode = d.IpcMode
		if hc.IpcMode.IsEmpty() {
			hc.IpcMode = container.IPCModePrivate
		}
	}
	if hc.CgroupnsMode.IsEmpty() {
		switch {
		case hc.Privileged && h.Cgroup.Mode != CgroupV2:
			hc.CgroupnsMode = container.CgroupnsModeHost
		case d.CgroupnsMode != "":
			hc.CgroupnsMode = d.CgroupnsMode
		case h.Cgroup.Mode == CgroupV2:
			hc.CgroupnsMode = container.CgroupnsModePrivate
		default:
			hc.CgroupnsMode = container.CgroupnsModeHost
		}
	}
	if hc.NetworkMode == "" {
		hc.NetworkMode = "bridge"
	}
	if hc.OomKillDisable == nil && h.OomKillDisable {
		hc.OomKillDisable = new(bool)
	}
	if hc.Runtime == "" {
		hc.Runtime = d.Runtime
	}
	if hc.RestartPolicy.Name == "" {
		hc.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if (hc.Privileged || hc.PidMode.IsHost() || hc.IpcMode.IsHost()) &&
		!slices.ContainsFunc(hc.SecurityOpt, func(o string) bool { return strings.HasPrefix(o, "label") }) {
		// SELinux would deny the container access to what it shares with the host.
		hc.SecurityOpt = append(slices.Clone(hc.SecurityOpt), "label=disable")
	}
	adaptLog(&hc.LogConfig, d.LogConfig)
	adaptPaths(h, hc)
}

// adaptLog completes a log configuration: if the container uses the daemon's
// driver, the daemon's options apply unless the container sets them.
func adaptLog(lc *container.LogConfig, d container.LogConfig) {
	if d.Type == "" {
		d.Type = LogDriverJSON
	}
	if lc.Type == "" {
		lc.Type = d.Type
	}
	if lc.Config == nil {
		lc.Config = map[string]string{}
	}
	if lc.Type != d.Type {
		return
	}
	for k, v := range d.Config {
		if _, set := lc.Config[k]; !set {
			lc.Config[k] = v
		}
	}
}

func adaptPaths(h Host, hc *container.HostConfig) {
	if hc.Privileged {
		return
	}
	sec, err := ParseSecurityOpts(hc.SecurityOpt)
	if err == nil && sec.SystemPathsUnconfined {
		hc.MaskedPaths, hc.ReadonlyPaths = []string{}, []string{}
		return
	}
	if hc.MaskedPaths == nil {
		hc.MaskedPaths = maskedPaths(h)
	}
	if hc.ReadonlyPaths == nil {
		hc.ReadonlyPaths = slices.Clone(readonlyPaths)
	}
}

// maskedPaths returns the paths that are hidden in a container, because they
// reveal the host or other containers.
func maskedPaths(h Host) []string {
	return append([]string{
		"/proc/acpi",
		"/proc/asound",
		"/proc/interrupts",
		"/proc/kcore",
		"/proc/keys",
		"/proc/latency_stats",
		"/proc/sched_debug",
		"/proc/scsi",
		"/proc/timer_list",
		"/proc/timer_stats",
		"/sys/devices/virtual/powercap",
		"/sys/firmware",
	}, h.ThermalPaths...)
}

var readonlyPaths = []string{
	"/proc/bus",
	"/proc/fs",
	"/proc/irq",
	"/proc/sys",
	"/proc/sysrq-trigger",
}

// boundShares limits CPU shares to the kernel's range: MIN_SHARES and MAX_SHARES
// of kernel/sched.
func boundShares(r *container.Resources) {
	if r.CPUShares > 0 {
		r.CPUShares = min(max(r.CPUShares, 2), 262144)
	}
}
