package oci

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/signal"
)

// Validate judges a request to create a container, with the checks and the
// words of dockerd. The request is the client's own, completed by Adapt, and
// not yet merged with the image's configuration.
//
// What the host can't do but the container can live without is taken out of
// hc and told in a warning; c.WorkingDir is cleaned. An error is of kind
// errdefs.ErrInvalidArgument, and the warnings are valid beside it.
func Validate(h Host, c *container.Config, hc *container.HostConfig, d Defaults) (warnings []string, err error) {
	if c == nil {
		return nil, invalid("config cannot be empty in order to create a container")
	}
	if hc == nil {
		hc = &container.HostConfig{}
	}
	if err := validateConfig(c); err != nil {
		return nil, err
	}
	checks := []func() ([]string, error){
		func() ([]string, error) { return nil, validateNamespaces(c, hc, d) },
		func() ([]string, error) { return nil, validateNetwork(c, hc) },
		func() ([]string, error) { return validateMounts(h, c, hc) },
		func() ([]string, error) { return validateResources(h, &hc.Resources, false) },
		func() ([]string, error) { return nil, validateSecurity(h, hc, d) },
		func() ([]string, error) { return nil, validateSysctls(hc) },
		func() ([]string, error) { return validateHostConfig(h, c, hc, d) },
	}
	for _, check := range checks {
		w, err := check()
		warnings = append(warnings, w...)
		if err != nil {
			return warnings, err
		}
	}
	return warnings, nil
}

func validateConfig(c *container.Config) error {
	if err := validateHostname(c.Hostname, "hostname"); err != nil {
		return err
	}
	if err := validateHostname(c.Domainname, "domainname"); err != nil {
		return err
	}
	if c.WorkingDir != "" {
		if !path.IsAbs(c.WorkingDir) {
			return invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
		}
		c.WorkingDir = path.Clean(c.WorkingDir)
	}
	if c.StopSignal != "" {
		if _, err := signal.ParseSignal(c.StopSignal); err != nil {
			return invalid("%v", err)
		}
	}
	if c.StopTimeout != nil && *c.StopTimeout < -1 {
		return invalid("invalid stop timeout %d: want seconds, or -1 to wait without end", *c.StopTimeout)
	}
	if err := validateEnv(c.Env); err != nil {
		return err
	}
	for k := range c.Labels {
		if k == "" {
			return invalid("invalid labels: the empty string is not permitted as a label key")
		}
	}
	if strings.ContainsAny(c.User, "\x00\n") {
		return invalid("invalid user %q", c.User)
	}
	for p := range c.ExposedPorts {
		if !p.IsValid() || p.Num() == 0 {
			return invalid("invalid port specification: %q", p.String())
		}
	}
	for _, arg := range slices.Concat(c.Entrypoint, c.Cmd) {
		if strings.ContainsRune(arg, 0) {
			return invalid("invalid argument %q: it contains a zero byte", arg)
		}
	}
	return validateHealth(c.Healthcheck)
}

// validateHostname keeps what would break the kernel's limit (64 bytes,
// sethostname(2)) or the files that the name is written into.
func validateHostname(name, what string) error {
	if len(name) > 64 {
		return invalid("invalid %s %q: it is longer than 64 bytes", what, name)
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == '#' }) {
		return invalid("invalid %s format for --%s: %q", what, what, name)
	}
	return nil
}

func validateEnv(env []string) error {
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if name == "" {
			return invalid("invalid environment variable: %s", kv)
		}
		if strings.ContainsRune(kv, 0) {
			return invalid("invalid environment variable: %q: it contains a zero byte", name)
		}
	}
	return nil
}

func validateHealth(hc *container.HealthConfig) error {
	if hc == nil {
		return nil
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"Interval", hc.Interval},
		{"Timeout", hc.Timeout},
		{"StartPeriod", hc.StartPeriod},
		{"StartInterval", hc.StartInterval},
	} {
		if f.value != 0 && f.value < container.MinimumDuration {
			return invalid("%s in Healthcheck cannot be less than %s", f.name, container.MinimumDuration)
		}
	}
	if hc.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	if len(hc.Test) > 0 {
		switch hc.Test[0] {
		case "NONE", "CMD", "CMD-SHELL", "":
		default:
			return invalid("Unknown type %q in Healthcheck (try CMD, CMD-SHELL or NONE)", hc.Test[0])
		}
	}
	return nil
}

func validateHostConfig(h Host, c *container.Config, hc *container.HostConfig, d Defaults) (warnings []string, err error) {
	if hc.AutoRemove && !hc.RestartPolicy.IsNone() {
		return nil, invalid("can't create 'AutoRemove' container with restart policy")
	}
	if err := container.ValidateRestartPolicy(hc.RestartPolicy); err != nil {
		return nil, err
	}
	if !hc.Isolation.IsValid() {
		return nil, invalid("invalid isolation '%s' on linux", hc.Isolation)
	}
	for k := range hc.Annotations {
		if k == "" {
			return nil, invalid("invalid Annotations: the empty string is not permitted as an annotation key")
		}
	}
	if _, err := ParseLog(hc.LogConfig); err != nil {
		return nil, err
	}
	if hc.ShmSize < 0 {
		return nil, invalid("SHM size can not be less than 0")
	}
	if hc.OomScoreAdj < -1000 || hc.OomScoreAdj > 1000 {
		return nil, invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", hc.OomScoreAdj)
	}
	if hc.Umask != nil && *hc.Umask > 0o777 {
		return nil, invalid("invalid umask %#o: the range is 0 to 0777", *hc.Umask)
	}
	for _, g := range hc.GroupAdd {
		if g == "" {
			return nil, invalid("invalid group: the name is empty")
		}
	}
	for k := range hc.StorageOpt {
		return nil, invalid("storage option %q is not supported: the snapshotter has no option per container", k)
	}
	if driver := hc.VolumeDriver; driver != "" && driver != "local" {
		return nil, invalid("volume driver %q is not available: only local is", driver)
	}
	if hc.Runtime != "" && len(d.Runtimes) > 0 && !slices.Contains(d.Runtimes, hc.Runtime) {
		return nil, invalid("unknown or invalid runtime name: %s", hc.Runtime)
	}
	if hc.CgroupParent != "" && d.CgroupDriver == DriverSystemd {
		if len(hc.CgroupParent) <= len(".slice") || !strings.HasSuffix(hc.CgroupParent, ".slice") || strings.Contains(hc.CgroupParent, "/") {
			return nil, invalid(`cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`)
		}
	}
	if hc.CgroupnsMode.IsPrivate() && !h.CgroupNamespaces {
		warnings = append(warnings, "Your kernel does not support cgroup namespaces.  Cgroup namespace setting discarded.")
	}
	if h.IPv4ForwardingDisabled && !hc.NetworkMode.IsHost() && !hc.NetworkMode.IsNone() && !c.NetworkDisabled {
		warnings = append(warnings, "IPv4 forwarding is disabled. Networking will not work.")
	}
	if hc.NetworkMode.IsHost() && (len(hc.PortBindings) > 0 || hc.PublishAllPorts) {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	return warnings, nil
}

// validateNamespaces checks the modes' syntax and which go together.
func validateNamespaces(c *container.Config, hc *container.HostConfig, d Defaults) error {
	if !hc.IpcMode.Valid() || hc.IpcMode.IsContainer() && hc.IpcMode.Container() == "" {
		return invalid("invalid IPC mode: %v", hc.IpcMode)
	}
	if !hc.PidMode.Valid() {
		return invalid("invalid PID mode: %v", hc.PidMode)
	}
	if !hc.UTSMode.Valid() {
		return invalid("invalid UTS mode: %v", hc.UTSMode)
	}
	if !hc.UsernsMode.Valid() {
		return invalid("invalid USER mode: %v", hc.UsernsMode)
	}
	if !hc.CgroupnsMode.Valid() {
		return invalid("invalid cgroup namespace mode: %v", hc.CgroupnsMode)
	}
	if hc.Cgroup != "" {
		return invalid("cgroup %q: joining another container's cgroup is not supported", hc.Cgroup)
	}
	if hc.UTSMode.IsHost() && c.Hostname != "" {
		return invalid("conflicting options: hostname and the UTS mode")
	}
	if hc.UTSMode.IsHost() && c.Domainname != "" {
		return invalid("conflicting options: domainname and the UTS mode")
	}
	if d.remapped(hc.UsernsMode) {
		switch {
		case hc.Privileged:
			return invalid("privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode")
		case hc.NetworkMode.IsHost():
			return invalid("cannot share the host's network namespace when user namespaces are enabled")
		case hc.PidMode.IsHost():
			return invalid("cannot share the host PID namespace when user namespaces are enabled")
		}
	}
	return nil
}

// FindInit looks for the init that --init puts into containers: the named
// path, or docker-init, tini or our own holdfast-init, beside the daemon or in PATH. The error is of
// kind errdefs.ErrFailedPrecondition.
func FindInit(configured, besideDir string) (string, error) {
	if configured != "" {
		if p, err := exec.LookPath(configured); err == nil {
			return p, nil
		}
		return "", unmet("the init binary %q can't be run: set init-path to one that can", configured)
	}
	for _, name := range []string{"docker-init", "tini-static", "tini", "holdfast-init"} {
		if besideDir != "" {
			if p := path.Join(besideDir, name); executable(p) {
				return p, nil
			}
		}
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", unmet(`exec: "docker-init": executable file not found in $PATH: install tini, or set init-path, to use --init`)
}

func executable(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// statExists is false only when the path is surely not there.
func statExists(p string) (bool, error) {
	_, err := os.Stat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
