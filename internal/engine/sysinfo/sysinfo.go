// SPDX-License-Identifier: Apache-2.0

// Package sysinfo answers what the daemon is and what it uses: the API's info,
// version and disk usage, and the daemon's status. It only reads. What it has to know
// of containers and other objects it asks through small interfaces.
package sysinfo

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/build"
	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"holdfast/internal/config"
	"holdfast/internal/engine/oci"
	"holdfast/internal/event"
	"holdfast/internal/version"
)

// Config is the daemon's configuration.
type Config struct {
	*config.Config
	Defaults    oci.Defaults
	AllRuntimes map[string]config.Runtime // including the built-in ones
}

// Containers reports on the containers.
type Containers interface {
	// Counts returns how many containers run, are paused and do neither.
	Counts() (running, paused, stopped int)
	// Unread returns the IDs of the containers whose record can't be used.
	Unread() []string
	// Sizes lists all containers with their sizes.
	Sizes(ctx context.Context) ([]moby.Summary, error)
	// Running returns the containers that run or may run, without Lives.
	Running() []StatusContainer
}

// Objects reports on images and volumes.
type Objects interface {
	ImagesCount(ctx context.Context) (int, error)
	ImagesUsage(ctx context.Context) (image.DiskUsage, error)
	VolumesUsage(ctx context.Context) *volume.DiskUsage
}

// Builds reports on the cache of image builds.
type Builds interface {
	// Used reports whether anything was ever built.
	Used() bool
	Usage(ctx context.Context) (build.DiskUsage, error)
}

// Lives is the record of the daemon's lives over this data root.
type Lives interface {
	List() []event.Life
	Since(t time.Time) []event.Life
}

// Deps are what a System reads from.
type Deps struct {
	ID, Release string
	Started     time.Time
	Driver      func() string   // the storage driver's name
	Config      func() Config   // the present configuration
	Host        func() oci.Host // with values that may have changed since the start
	Listeners   func() int      // how many clients follow events
	Containers  Containers
	Objects     Objects
	Builds      Builds // may be nil
	Lives       Lives
	Log         *slog.Logger
}

// System answers questions about the daemon.
type System struct {
	deps   Deps
	builds runtimeBuilds
}

// New returns a System.
func New(d Deps) *System { return &System{deps: d} }

// Info returns information about the daemon and its host.
func (s *System) Info(ctx context.Context) (system.Info, error) {
	cfg := s.deps.Config()
	h := s.deps.Host()
	i := system.Info{
		ID: s.deps.ID, Driver: s.deps.Driver(),
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
		NEventsListener: s.deps.Listeners(),
		KernelVersion:   h.Kernel, OperatingSystem: h.OS, OSVersion: h.OSVersion, OSType: "linux",
		Architecture: machine(h.Arch), NCPU: h.NumCPU, MemTotal: h.MemTotal,
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig:     registryConfig(cfg),
		DockerRootDir:      cfg.DataRoot,
		HTTPProxy:          proxy(cfg.HTTPProxy, "HTTP_PROXY"), HTTPSProxy: proxy(cfg.HTTPSProxy, "HTTPS_PROXY"), NoProxy: proxy(cfg.NoProxy, "NO_PROXY"),
		Labels: append([]string{}, cfg.Labels...), ExperimentalBuild: cfg.Experimental,
		ServerVersion: s.deps.Release, Runtimes: map[string]system.RuntimeWithStatus{},
		DefaultRuntime: cfg.DefaultRuntime, LiveRestoreEnabled: cfg.LiveRestore,
		Swarm:            swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		InitBinary:       cmp.Or(cfg.Defaults.InitPath, "docker-init"),
		ContainerdCommit: system.Commit{ID: "in process"},
		RuncCommit:       system.Commit{ID: s.commit(ctx, cfg.AllRuntimes[cfg.DefaultRuntime].Path)},
		SecurityOptions:  securityOptions(h, cfg),
		FirewallBackend:  &system.FirewallInfo{Driver: "nftables"},
		CDISpecDirs:      []string{},
		Warnings:         slices.Concat(cfg.ExposedWarnings(), h.InfoWarnings(), cfg.Warnings()),
	}
	for _, w := range s.runtimeWarnings(ctx) {
		i.Warnings = append(i.Warnings, "WARNING: "+w)
	}
	i.Name, _ = os.Hostname()
	for _, id := range s.deps.Containers.Unread() {
		i.Warnings = append(i.Warnings, fmt.Sprintf("WARNING: the record of container %s can't be used: it is left as it is (see the daemon's log)", id))
	}
	for name, rt := range cfg.AllRuntimes {
		i.Runtimes[name] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: rt.Path, Args: rt.Args}}
	}
	for _, p := range cfg.AddressPools {
		i.DefaultAddressPools = append(i.DefaultAddressPools, system.NetworkAddressPool{Base: p.Base, Size: p.Size})
	}
	i.GenericResources = genericResources(cfg.NodeGenericResources)
	i.ContainersRunning, i.ContainersPaused, i.ContainersStopped = s.deps.Containers.Counts()
	i.Containers = i.ContainersRunning + i.ContainersPaused + i.ContainersStopped
	var err error
	i.Images, err = s.deps.Objects.ImagesCount(ctx)
	return i, err
}

// genericResources converts what the configuration was checked for.
func genericResources(list []string) (out []swarm.GenericResource) {
	all, _ := config.GenericResources(list)
	for _, r := range all {
		if r.Name == "" {
			out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: r.Kind, Value: r.Count}})
			continue
		}
		out = append(out, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: r.Kind, Value: r.Name}})
	}
	return out
}

// proxy returns the proxy that the daemon uses, from its configuration or else its
// environment, with the credentials masked.
func proxy(configured, variable string) string {
	return config.MaskCredentials(cmp.Or(configured, os.Getenv(variable), os.Getenv(strings.ToLower(variable))))
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// machine returns the name of an architecture in uname -m.
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

func registryConfig(cfg Config) *registry.ServiceConfig {
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

func securityOptions(h oci.Host, cfg Config) []string {
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

// Version returns the versions of the engine and of its components.
func (s *System) Version(ctx context.Context) (system.VersionResponse, error) {
	cfg, h := s.deps.Config(), s.deps.Host()
	v := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Holdfast"},
		Version:  s.deps.Release, Os: "linux", Arch: runtime.GOARCH,
		GitCommit: version.Commit, GoVersion: runtime.Version(), KernelVersion: h.Kernel,
		Experimental: cfg.Experimental, BuildTime: version.BuildTime,
	}
	v.Components = []system.ComponentVersion{{
		Name: "Engine", Version: s.deps.Release,
		Details: map[string]string{
			"Arch": v.Arch, "BuildTime": v.BuildTime, "Experimental": fmt.Sprint(v.Experimental), "GitCommit": v.GitCommit,
			"GoVersion": v.GoVersion, "KernelVersion": v.KernelVersion, "Os": v.Os,
		},
	}, {
		Name: cfg.DefaultRuntime, Version: s.commit(ctx, cfg.AllRuntimes[cfg.DefaultRuntime].Path),
		Details: map[string]string{"Path": cfg.AllRuntimes[cfg.DefaultRuntime].Path},
	}}
	return v, nil
}

// DiskUsage returns the disk usage of the selected kinds of object.
func (s *System) DiskUsage(ctx context.Context, o DiskUsageOptions) (system.DiskUsage, error) {
	var du system.DiskUsage
	if o.Containers {
		list, err := s.deps.Containers.Sizes(ctx)
		if err != nil {
			return du, err
		}
		u := &moby.DiskUsage{Items: list, TotalCount: int64(len(list))}
		for i, c := range list {
			list[i].ImageManifestDescriptor = nil // as in Docker, only the list of containers shows it
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
		u, err := s.deps.Objects.ImagesUsage(ctx)
		if err != nil {
			return du, err
		}
		du.ImageUsage = &u
	}
	if o.Volumes {
		du.VolumeUsage = s.deps.Objects.VolumesUsage(ctx)
	}
	return du, s.addBuilds(ctx, o, &du)
}

// addBuilds adds the cache of builds. A layer that both an image and the cache have is
// counted as the image's.
func (s *System) addBuilds(ctx context.Context, o DiskUsageOptions, du *system.DiskUsage) error {
	var cache build.DiskUsage
	if s.deps.Builds != nil && s.deps.Builds.Used() && (o.BuildCache || o.Images) {
		var err error
		if cache, err = s.deps.Builds.Usage(ctx); err != nil {
			return err
		}
	}
	if du.ImageUsage != nil {
		du.ImageUsage.TotalSize = max(du.ImageUsage.TotalSize-cache.Reclaimable, 0)
	}
	if o.BuildCache {
		du.BuildCacheUsage = &cache
	}
	return nil
}

// Status is what `holdfast daemon status` shows: this daemon, the lives of daemons
// over this data root, and for each running container its shim and under how many
// of those lives it has run.
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
// ContainersStopped: it has stopped its containers before its end, and ended the builds.
type Life struct {
	Started           time.Time `json:"started"`
	Ended             time.Time `json:"ended,omitzero"`
	How               string    `json:"how,omitempty"`
	ContainersStopped bool      `json:"containersStopped,omitempty"`
}

// StatusContainer is a running container.
type StatusContainer struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Status      string    `json:"status"`
	Pid         int       `json:"pid"`
	Started     time.Time `json:"started"`
	ShimPid     int       `json:"shimPid"`
	ShimVersion string    `json:"shimVersion"`
	// Lives is the number of daemons' lives under which it has run.
	Lives int `json:"lives"`
}

// DaemonStatus returns the daemon's status.
func (s *System) DaemonStatus(context.Context) (Status, error) {
	cfg := s.deps.Config()
	lives := []Life{}
	for _, l := range s.deps.Lives.List() {
		lives = append(lives, Life{Started: l.Start, Ended: l.End, How: l.How, ContainersStopped: l.ContainersStopped})
	}
	st := Status{
		Version: s.deps.Release, Pid: os.Getpid(), Started: s.deps.Started,
		DataRoot: cfg.DataRoot, ExecRoot: cfg.ExecRoot, Lives: lives, Containers: []StatusContainer{},
	}
	for _, c := range s.deps.Containers.Running() {
		c.Lives = len(s.deps.Lives.Since(c.Started))
		st.Containers = append(st.Containers, c)
	}
	slices.SortFunc(st.Containers, func(a, b StatusContainer) int { return strings.Compare(a.Name, b.Name) })
	return st, nil
}
