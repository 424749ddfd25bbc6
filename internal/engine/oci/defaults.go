package oci

import (
	"slices"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultShmSize is the size of /dev/shm where nothing else was asked, in bytes.
const DefaultShmSize = 64 << 20

// Defaults are the daemon's options that bear on containers.
type Defaults struct {
	CgroupDriver string // DriverCgroupfs or DriverSystemd
	CgroupParent string // empty is the driver's

	// The modes and sizes that a container gets that asks for none. Empty or 0
	// is Docker's own default.
	IpcMode      container.IpcMode
	CgroupnsMode container.CgroupnsMode
	ShmSize      int64 // bytes
	LogConfig    container.LogConfig

	Ulimits         map[string]*container.Ulimit
	NoNewPrivileges bool
	// SeccompProfile is "" or "builtin" for the built-in profile, "unconfined",
	// or the JSON text of a profile.
	SeccompProfile string
	SELinux        bool // --selinux-enabled

	Runtime  string   // name of the default runtime
	Runtimes []string // names of all runtimes

	Init     bool   // --init for all
	InitPath string // of the init to mount; empty looks for one, see FindInit

	// UIDMappings and GIDMappings are those of --userns-remap.
	UIDMappings, GIDMappings []specs.LinuxIDMapping
}

// remapped reports whether a container with this mode gets a user namespace.
func (d Defaults) remapped(m container.UsernsMode) bool {
	return len(d.UIDMappings) > 0 && m.IsPrivate()
}

// Adapt fills in what the request left open, as the daemon's defaults and the
// host have it, so that inspect shows the values in force. It is to be called
// before Validate, once, when the container is created.
func Adapt(h Host, hc *container.HostConfig, d Defaults) {
	if hc.CPUShares > 0 {
		// The kernel's bounds: MIN_SHARES and MAX_SHARES of kernel/sched.
		hc.CPUShares = min(max(hc.CPUShares, 2), 262144)
	}
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
	adaptLog(&hc.LogConfig, d.LogConfig)
	adaptPaths(h, hc)
}

// adaptLog completes a log configuration: the daemon's options hold where the
// container uses the daemon's driver and did not set them itself.
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

// maskedPaths are hidden in a container: they tell of the host or of other
// containers.
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
