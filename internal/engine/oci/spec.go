// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/errs"
)

// Input is everything that a specification is built from.
type Input struct {
	ID       string
	Host     Host
	Defaults Defaults

	// Config is merged with the image's. HostConfig was passed to Adapt and
	// Validate.
	Config     *container.Config
	HostConfig *container.HostConfig

	Rootfs string // the root filesystem on the host, mounted
	// RootPath is the value of root.path, if it differs from Rootfs: a path within
	// the bundle.
	RootPath string

	Mounts []Mount // volumes, binds and tmpfs, each with a different destination
	Files  Files
	// ShmPath is a tmpfs on the host that becomes /dev/shm. It is needed to share
	// /dev/shm with other containers. If it is empty the container gets a /dev/shm
	// of its own.
	ShmPath string

	Namespaces Namespaces

	CgroupDriver string // DriverCgroupfs or DriverSystemd; empty means that of Defaults
	CgroupParent string // of the container's record; empty means HostConfig's, then Defaults'
	// CgroupPath overrides the path that function CgroupPath would return.
	CgroupPath string

	// InitPath is the init to mount, from FindInit. It is only used if NeedsInit
	// returns true.
	InitPath string

	// Env are additional variables, which those of Config override.
	Env []string

	ProcessLabel, MountLabel string // SELinux, from Labels

	// NoRecursiveReadOnly is for runtimes that don't support the mount option
	// "rro".
	NoRecursiveReadOnly bool

	sys system
}

// Files are the sandbox's files on the host. Files with an empty path are not
// mounted.
type Files struct {
	Hosts, Resolv, Hostname string
}

// Namespaces are paths of namespaces to join, such as /proc/PID/ns/net. If a path
// is empty the mode decides: the host's, or a new one.
type Namespaces struct {
	Net, IPC, PID, UTS, User string
}

// NeedsInit reports whether the container runs under --init.
func NeedsInit(hc *container.HostConfig, d Defaults) bool {
	if !hc.PidMode.IsPrivate() {
		return false // the first process is another container's or the host's
	}
	if hc.Init != nil {
		return *hc.Init
	}
	return d.Init
}

const initInContainer = "/sbin/docker-init"

// Build makes the specification of a container. If a request can't be met (an
// unknown user, a missing device) it returns errdefs.ErrInvalidArgument, or
// errdefs.ErrFailedPrecondition if the host is the cause.
func Build(in Input) (*specs.Spec, error) {
	if in.Config == nil || in.HostConfig == nil {
		return nil, errs.Invalid("container %s: config and host config are needed", in.ID)
	}
	sec, err := ParseSecurityOpts(in.HostConfig.SecurityOpt)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: in.Rootfs, Readonly: in.HostConfig.ReadonlyRootfs},
		Annotations: maps.Clone(in.HostConfig.Annotations),
		Linux:       &specs.Linux{Sysctl: map[string]string{}},
	}
	if in.RootPath != "" {
		s.Root.Path = in.RootPath
	}
	for _, step := range []func(*specs.Spec, Input, Security) error{
		setProcess, setNamespaces, setSysctls, setCgroup, setDevices, setMounts, setSeccomp,
	} {
		if err := step(s, in, sec); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func setProcess(s *specs.Spec, in Input, sec Security) error {
	c, hc := in.Config, in.HostConfig
	args := slices.Concat(c.Entrypoint, c.Cmd)
	// An empty string as the first argument is left to the runtime, which reports
	// that the program is not found.
	if len(args) == 0 {
		return errs.Invalid("no command specified")
	}
	if NeedsInit(hc, in.Defaults) {
		if in.InitPath == "" {
			return errs.Unmet("container %s: init was asked for, and none was found", in.ID)
		}
		args = append([]string{initInContainer, "--"}, args...)
	}
	user, home, err := resolveUser(in.Rootfs, c.User, hc.GroupAdd)
	if err != nil {
		return err
	}
	user.Umask = hc.Umask
	bounding, err := containerCaps(in.Host, hc)
	if err != nil {
		return err
	}
	p := &specs.Process{
		Terminal:        c.Tty,
		User:            user,
		Args:            args,
		Env:             environment(in, home),
		Cwd:             "/",
		Capabilities:    capabilitySets(bounding, user.UID),
		Rlimits:         rlimits(hc.Ulimits, in.Defaults.Ulimits),
		NoNewPrivileges: in.Defaults.NoNewPrivileges,
		SelinuxLabel:    in.ProcessLabel,
	}
	if c.WorkingDir != "" {
		p.Cwd = path.Clean(c.WorkingDir)
	}
	if c.Tty && hc.ConsoleSize[0] > 0 && hc.ConsoleSize[1] > 0 {
		p.ConsoleSize = &specs.Box{Height: hc.ConsoleSize[0], Width: hc.ConsoleSize[1]}
	}
	if sec.NoNewPrivileges != nil {
		p.NoNewPrivileges = *sec.NoNewPrivileges
	}
	// To lower one's own score takes CAP_SYS_RESOURCE. Without it the container
	// inherits the daemon's score unless another one was requested.
	if score := hc.OomScoreAdj; score != 0 || in.Host.OOMScoreAdj <= 0 || in.Host.HasCap("CAP_SYS_RESOURCE") {
		p.OOMScoreAdj = &score
	}
	p.ApparmorProfile = appArmorProfile(in.Host, hc.Privileged, sec)
	s.Process = p
	s.Linux.MountLabel = in.MountLabel
	return nil
}

// capabilitySets returns the capability sets. As after execve(2), a process that
// isn't root only has its bounding set.
func capabilitySets(bounding []string, uid uint32) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{Bounding: bounding}
	if uid == 0 {
		c.Effective, c.Permitted = slices.Clone(bounding), slices.Clone(bounding)
	}
	return c
}

// rlimits returns the container's own limits and, for those that it does not set,
// the daemon's defaults. Other limits are not set.
func rlimits(own []*container.Ulimit, defaults map[string]*container.Ulimit) []specs.POSIXRlimit {
	merged := maps.Clone(defaults)
	if merged == nil {
		merged = map[string]*container.Ulimit{}
	}
	for _, u := range own {
		merged[u.Name] = u
	}
	var out []specs.POSIXRlimit
	for _, name := range sortedKeys(merged) {
		u := merged[name]
		if u == nil {
			continue
		}
		out = append(out, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(name),
			Soft: uint64(u.Soft), // -1 is RLIM_INFINITY, all bits set
			Hard: uint64(u.Hard),
		})
	}
	return out
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func environment(in Input, home string) []string {
	base := []string{defaultPath, "HOSTNAME=" + in.Config.Hostname}
	if in.Config.Hostname == "" {
		base = base[:1]
	}
	if in.Config.Tty {
		base = append(base, "TERM=xterm")
	}
	env := overrideEnv(overrideEnv(base, in.Env), in.Config.Env)
	return withHome(env, home)
}

// withHome appends HOME if it is not set. It comes last, so that the image's
// variables keep their positions.
func withHome(env []string, home string) []string {
	if hasEnv(env, "HOME") || home == "" {
		return env
	}
	return append(env, "HOME="+home)
}

// withTerm inserts TERM where environment puts it: after PATH and HOSTNAME, or else
// first.
func withTerm(env []string) []string {
	at := 0
	for i, kv := range env {
		if strings.HasPrefix(kv, "PATH=") || strings.HasPrefix(kv, "HOSTNAME=") {
			at = i + 1
		}
	}
	return slices.Insert(env, at, "TERM=xterm")
}

func hasEnv(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// overrideEnv applies variables to a base: a variable of the same name is
// replaced in place, and a name without "=" is removed.
func overrideEnv(base, over []string) []string {
	out := slices.Clone(base)
	at := make(map[string]int, len(out)+len(over))
	for i, kv := range out {
		name, _, _ := strings.Cut(kv, "=")
		at[name] = i
	}
	removed := map[int]bool{}
	for _, kv := range over {
		name, _, valued := strings.Cut(kv, "=")
		i, known := at[name]
		switch {
		case !valued && known:
			removed[i] = true
			delete(at, name)
		case !valued:
		case known:
			out[i] = kv
		default:
			at[name] = len(out)
			out = append(out, kv)
		}
	}
	kept := out[:0]
	for i, kv := range out {
		if !removed[i] {
			kept = append(kept, kv)
		}
	}
	return kept
}

func setCgroup(s *specs.Spec, in Input, _ Security) error {
	driver := in.CgroupDriver
	if driver == "" {
		driver = in.Defaults.CgroupDriver
	}
	parent := in.CgroupParent
	if parent == "" {
		parent = in.HostConfig.CgroupParent
	}
	if parent == "" {
		parent = in.Defaults.CgroupParent
	}
	s.Linux.CgroupsPath = in.CgroupPath
	if s.Linux.CgroupsPath == "" {
		s.Linux.CgroupsPath = CgroupPath(driver, parent, in.ID)
	}
	r, err := resources(in.Host, in.HostConfig.Resources, in.sys)
	if err != nil {
		return err
	}
	s.Linux.Resources = r
	return nil
}

func setSysctls(s *specs.Spec, in Input, _ Security) error {
	hc := in.HostConfig
	if hc.NetworkMode.IsPrivate() {
		// Allow ping and low ports without a capability. A user namespace does not
		// map the groups that ping_group_range needs.
		userns := in.Host.InUserNamespace || in.Defaults.remapped(hc.UsernsMode)
		if in.Host.PingGroupRange && !userns {
			s.Linux.Sysctl["net.ipv4.ping_group_range"] = "0 2147483647"
		}
		if in.Host.UnprivilegedPortStart {
			s.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] = "0"
		}
	}
	// It is set by sysctl, because not all runtimes support the specification's
	// domainname.
	if d := in.Config.Domainname; d != "" && !hc.UTSMode.IsHost() {
		s.Linux.Sysctl["kernel.domainname"] = d
	}
	maps.Copy(s.Linux.Sysctl, hc.Sysctls)
	return nil
}
