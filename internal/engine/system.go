package engine

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/build"
	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	images "holdfast/internal/image"
	"holdfast/internal/version"
)

// Info tells about the daemon and its host.
func (e *Engine) Info(ctx context.Context) (system.Info, error) {
	cfg := e.config.Load()
	h := e.host
	i := system.Info{
		ID: e.id, Driver: e.images.Driver(),
		DriverStatus: [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}},
		Plugins: system.PluginsInfo{
			Volume: []string{"local"}, Network: []string{"bridge", "host", "null"},
			Log: []string{oci.LogDriverJSON, oci.LogDriverLocal, oci.LogDriverNone},
		},
		MemoryLimit: h.MemoryLimit, SwapLimit: h.SwapLimit,
		CPUCfsPeriod: h.CPUCfs, CPUCfsQuota: h.CPUCfs, CPUShares: h.CPUShares, CPUSet: h.Cpuset,
		PidsLimit: h.Pids, OomKillDisable: h.OomKillDisable,
		IPv4Forwarding: !h.IPv4ForwardingDisabled,
		Debug:          cfg.Debug, NFd: openFiles(), NGoroutines: runtime.NumGoroutine(),
		SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: cfg.LogDriver,
		CgroupDriver: cfg.Defaults.CgroupDriver, CgroupVersion: h.Cgroup.Version(),
		NEventsListener: int(e.listeners.Load()),
		KernelVersion:   h.Kernel, OperatingSystem: h.OS, OSVersion: h.OSVersion, OSType: "linux",
		Architecture: machine(h.Arch), NCPU: h.NumCPU, MemTotal: h.MemTotal,
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig:     registryConfig(cfg),
		DockerRootDir:      cfg.DataRoot,
		HTTPProxy:          cfg.HTTPProxy, HTTPSProxy: cfg.HTTPSProxy, NoProxy: cfg.NoProxy,
		Labels: append([]string{}, cfg.Labels...), ExperimentalBuild: cfg.Experimental,
		ServerVersion: e.release, Runtimes: map[string]system.RuntimeWithStatus{},
		DefaultRuntime: cfg.DefaultRuntime, LiveRestoreEnabled: cfg.LiveRestore,
		Swarm:            swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		InitBinary:       cmp.Or(cfg.Defaults.InitPath, "docker-init"),
		ContainerdCommit: system.Commit{ID: "in process"},
		RuncCommit:       system.Commit{ID: runtimeVersion(ctx, cfg.runtimes()[cfg.DefaultRuntime].Path)},
		SecurityOptions:  securityOptions(h, cfg),
		FirewallBackend:  &system.FirewallInfo{Driver: "nftables"},
		CDISpecDirs:      []string{},
		Warnings:         append(h.InfoWarnings(), cfg.Warnings()...),
	}
	i.Name, _ = os.Hostname()
	for _, id := range e.unread {
		i.Warnings = append(i.Warnings, fmt.Sprintf("WARNING: the record of container %s can't be used: it is left as it is (see the daemon's log)", id))
	}
	for name, rt := range cfg.runtimes() {
		i.Runtimes[name] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: rt.Path, Args: rt.Args}}
	}
	for _, p := range cfg.AddressPools {
		i.DefaultAddressPools = append(i.DefaultAddressPools, system.NetworkAddressPool{Base: p.Base, Size: p.Size})
	}
	for _, a := range e.index.all() {
		i.Containers++
		switch s := apiState(a.view.Load()); {
		case s.Paused:
			i.ContainersPaused++
		case s.Running:
			i.ContainersRunning++
		default:
			i.ContainersStopped++
		}
	}
	list, err := e.images.List(ctx, images.ListOptions{All: true})
	if err != nil {
		return i, err
	}
	i.Images = len(list)
	return i, nil
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// machine is an architecture as uname -m names it.
func machine(goarch string) string {
	switch goarch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case "386":
		return "i686"
	}
	return goarch
}

func registryConfig(cfg *Config) *registry.ServiceConfig {
	c := &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
		IndexConfigs: map[string]*registry.IndexInfo{
			"docker.io": {Name: "docker.io", Mirrors: append([]string{}, cfg.RegistryMirrors...), Secure: true, Official: true},
		},
		Mirrors: append([]string{}, cfg.RegistryMirrors...),
	}
	for _, r := range cfg.InsecureRegistries {
		if p, err := netip.ParsePrefix(r); err == nil {
			c.InsecureRegistryCIDRs = append(c.InsecureRegistryCIDRs, p)
			continue
		}
		c.IndexConfigs[r] = &registry.IndexInfo{Name: r, Mirrors: []string{}}
	}
	return c
}

func securityOptions(h oci.Host, cfg *Config) []string {
	var out []string
	if h.AppArmor {
		out = append(out, "name=apparmor")
	}
	if h.Seccomp {
		profile := cmp.Or(cfg.SeccompProfile, "builtin")
		out = append(out, "name=seccomp,profile="+profile)
	}
	if h.Cgroup.Mode == oci.CgroupV2 {
		out = append(out, "name=cgroupns")
	}
	if cfg.NoNewPrivileges {
		out = append(out, "name=no-new-privileges")
	}
	return out
}

// runtimeVersion is what the OCI runtime says of itself, or why it can't.
func runtimeVersion(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "N/A"
	}
	for line := range bytes.Lines(out) {
		if v, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("commit: ")); ok {
			return string(v)
		}
	}
	return strings.TrimSpace(string(out))
}

// Version tells the versions of the engine and what it is made of.
func (e *Engine) Version(ctx context.Context) (system.VersionResponse, error) {
	cfg := e.config.Load()
	v := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Holdfast"},
		Version:  e.release, Os: "linux", Arch: runtime.GOARCH,
		GitCommit: version.Commit, GoVersion: runtime.Version(), KernelVersion: e.host.Kernel,
		Experimental: cfg.Experimental, BuildTime: version.BuildTime,
	}
	v.Components = []system.ComponentVersion{{
		Name: "Engine", Version: e.release,
		Details: map[string]string{
			"Arch": v.Arch, "BuildTime": v.BuildTime, "Experimental": fmt.Sprint(v.Experimental), "GitCommit": v.GitCommit,
			"GoVersion": v.GoVersion, "KernelVersion": v.KernelVersion, "Os": v.Os,
		},
	}, {
		Name: cfg.DefaultRuntime, Version: runtimeVersion(ctx, cfg.runtimes()[cfg.DefaultRuntime].Path),
		Details: map[string]string{"Path": cfg.runtimes()[cfg.DefaultRuntime].Path},
	}}
	return v, nil
}

// DiskUsage sums up what takes room.
func (e *Engine) DiskUsage(ctx context.Context, o DiskUsageOptions) (system.DiskUsage, error) {
	var du system.DiskUsage
	if o.Containers {
		list, err := e.ContainerList(ctx, ListOptions{All: true, Size: true})
		if err != nil {
			return du, err
		}
		u := &moby.DiskUsage{Items: list, TotalCount: int64(len(list))}
		for _, c := range list {
			u.TotalSize += c.SizeRw
			switch c.State {
			case moby.StateRunning, moby.StatePaused, moby.StateRestarting:
				u.ActiveCount++
			default:
				u.Reclaimable += c.SizeRw
			}
		}
		du.ContainerUsage = u
	}
	if o.Images {
		u, err := e.images.DiskUsage(ctx, func(id string) int64 { return int64(len(e.imageUsers(id))) })
		if err != nil {
			return du, err
		}
		du.ImageUsage = &u
	}
	if o.Volumes {
		list := e.volumes.List()
		u := &volume.DiskUsage{Items: list, TotalCount: int64(len(list))}
		for i := range list {
			size, err := e.volumes.Usage(ctx, list[i].Name)
			if err != nil {
				size = -1
			}
			refs := int64(len(e.volumeUsers(list[i].Name, "")))
			list[i].UsageData = &volume.UsageData{RefCount: refs, Size: size}
			u.TotalSize += max(size, 0)
			if refs > 0 {
				u.ActiveCount++
			} else {
				u.Reclaimable += max(size, 0)
			}
		}
		du.VolumeUsage = u
	}
	if o.BuildCache {
		du.BuildCacheUsage = &build.DiskUsage{}
	}
	return du, nil
}

// Status is what `holdfast daemon status` shows: this daemon, its lives, and
// the shims with how many of those lives each container has been kept over.
type Status struct {
	Version    string            `json:"version"`
	Pid        int               `json:"pid"`
	Started    time.Time         `json:"started"`
	DataRoot   string            `json:"dataRoot"`
	ExecRoot   string            `json:"execRoot"`
	Lives      []Life            `json:"lives"`
	Containers []StatusContainer `json:"containers"`
}

// Life is one run of a daemon over this data root. How is empty while it lasts.
type Life struct {
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	How     string    `json:"how,omitempty"`
}

// StatusContainer is a container that runs.
type StatusContainer struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Status      string    `json:"status"`
	Pid         int       `json:"pid"`
	Started     time.Time `json:"started"`
	ShimPid     int       `json:"shimPid"`
	ShimVersion string    `json:"shimVersion"`
	// Lives is how many daemons it has run under.
	Lives int `json:"lives"`
}

// DaemonStatus tells it.
func (e *Engine) DaemonStatus(ctx context.Context) (Status, error) {
	cfg := e.config.Load()
	lives := []Life{}
	for _, l := range e.lives.List() {
		lives = append(lives, Life{Started: l.Start, Ended: l.End, How: l.How})
	}
	s := Status{
		Version: e.release, Pid: os.Getpid(), Started: e.started,
		DataRoot: cfg.DataRoot, ExecRoot: cfg.ExecRoot, Lives: lives, Containers: []StatusContainer{},
	}
	for _, a := range e.index.all() {
		v := a.view.Load()
		if !v.state.Alive() || v.state == container.Starting {
			continue
		}
		c := StatusContainer{
			ID: a.id, Name: v.spec.Name, Status: v.state.String(), Pid: v.rec.Pid, Started: v.rec.Started, ShimPid: v.rec.ShimPid,
		}
		if v.shim != nil {
			c.ShimVersion = v.shim.Hello().Release
		}
		c.Lives = len(e.lives.Since(v.rec.Started))
		s.Containers = append(s.Containers, c)
	}
	slices.SortFunc(s.Containers, func(a, b StatusContainer) int { return strings.Compare(a.Name, b.Name) })
	return s, nil
}
