// SPDX-License-Identifier: Apache-2.0

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

	"holdfast/internal/errs"
)

// Validate validates a request to create a container, with dockerd's checks and
// messages. The request is the client's own, completed by Adapt, and not yet
// merged with the image's configuration.
//
// Settings that the host does not support but that are not essential are removed
// from hc, with a warning. c.WorkingDir is cleaned. Errors are of kind
// errdefs.ErrInvalidArgument; the warnings are also valid then.
func Validate(h Host, c *container.Config, hc *container.HostConfig, d Defaults) (warnings []string, err error) {
	if c == nil {
		return nil, errs.Invalid("config cannot be empty in order to create a container")
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
			return errs.Invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
		}
		c.WorkingDir = path.Clean(c.WorkingDir)
	}
	if c.StopSignal != "" {
		if _, err := signal.ParseSignal(c.StopSignal); err != nil {
			return errs.Invalid("%v", err)
		}
	}
	if c.StopTimeout != nil && *c.StopTimeout < -1 {
		return errs.Invalid("invalid stop timeout %d: want seconds, or -1 to wait without end", *c.StopTimeout)
	}
	if err := validateEnv(c.Env); err != nil {
		return err
	}
	for k := range c.Labels {
		if k == "" {
			return errs.Invalid("invalid labels: the empty string is not permitted as a label key")
		}
	}
	if strings.ContainsAny(c.User, "\x00\n") {
		return errs.Invalid("invalid user %q", c.User)
	}
	for p := range c.ExposedPorts {
		if !p.IsValid() || p.Num() == 0 {
			return errs.Invalid("invalid port specification: %q", p.String())
		}
	}
	for _, arg := range slices.Concat(c.Entrypoint, c.Cmd) {
		if strings.ContainsRune(arg, 0) {
			return errs.Invalid("invalid argument %q: it contains a zero byte", arg)
		}
	}
	return validateHealth(c.Healthcheck)
}

// validateHostname refuses names that exceed the kernel's limit (64 bytes,
// sethostname(2)) or that would break the files they are written into.
func validateHostname(name, what string) error {
	if len(name) > 64 {
		return errs.Invalid("%s %q is too long (maximum 64 bytes)", what, name)
	}
	if name != "" && !isWord(name) || strings.Contains(name, "/") {
		return errs.Invalid("invalid %s format for --%s: %q", what, what, name)
	}
	return nil
}

func validateEnv(env []string) error {
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if name == "" {
			return errs.Invalid("invalid environment variable: %s", kv)
		}
		if strings.ContainsRune(kv, 0) {
			return errs.Invalid("invalid environment variable: %q: it contains a zero byte", name)
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
			return errs.Invalid("%s in Healthcheck cannot be less than %s", f.name, container.MinimumDuration)
		}
	}
	if hc.Retries < 0 {
		return errs.Invalid("Retries in Healthcheck cannot be negative")
	}
	if len(hc.Test) > 0 {
		switch hc.Test[0] {
		case "NONE", "CMD", "CMD-SHELL", "":
		default:
			return errs.Invalid("Unknown type %q in Healthcheck (try CMD, CMD-SHELL or NONE)", hc.Test[0])
		}
	}
	return nil
}

func validateHostConfig(h Host, c *container.Config, hc *container.HostConfig, d Defaults) (warnings []string, err error) {
	if hc.AutoRemove && !hc.RestartPolicy.IsNone() {
		return nil, errs.Invalid("can't create 'AutoRemove' container with restart policy")
	}
	if err := container.ValidateRestartPolicy(hc.RestartPolicy); err != nil {
		return nil, err
	}
	if !hc.Isolation.IsValid() {
		return nil, errs.Invalid("invalid isolation (%s): linux only supports 'default'", hc.Isolation)
	}
	for k := range hc.Annotations {
		if k == "" {
			return nil, errs.Invalid("invalid Annotations: the empty string is not permitted as an annotation key")
		}
	}
	if _, err := ParseLog(hc.LogConfig); err != nil {
		return nil, err
	}
	if hc.ShmSize < 0 {
		return nil, errs.Invalid("SHM size can not be less than 0")
	}
	if hc.OomScoreAdj < -1000 || hc.OomScoreAdj > 1000 {
		return nil, errs.Invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", hc.OomScoreAdj)
	}
	if hc.Umask != nil && *hc.Umask > 0o777 {
		return nil, errs.Invalid("invalid umask %#o: the range is 0 to 0777", *hc.Umask)
	}
	for _, g := range hc.GroupAdd {
		if g == "" {
			return nil, errs.Invalid("invalid group: the name is empty")
		}
	}
	for k := range hc.StorageOpt {
		return nil, errs.Invalid("storage option %q is not supported: the snapshotter has no option per container", k)
	}
	if driver := hc.VolumeDriver; driver != "" && driver != "local" {
		return nil, errs.Invalid("volume driver %q is not available: only local is", driver)
	}
	if hc.Runtime != "" && len(d.Runtimes) > 0 && !slices.Contains(d.Runtimes, hc.Runtime) {
		return nil, errs.Invalid("unknown or invalid runtime name: %s", hc.Runtime)
	}
	if hc.CgroupParent != "" && d.CgroupDriver == DriverSystemd {
		if len(hc.CgroupParent) <= len(".slice") || !strings.HasSuffix(hc.CgroupParent, ".slice") || strings.Contains(hc.CgroupParent, "/") {
			return nil, errs.Invalid(`cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`)
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

// validateNamespaces checks the syntax of the modes and their combinations.
func validateNamespaces(c *container.Config, hc *container.HostConfig, d Defaults) error {
	if !hc.IpcMode.Valid() || hc.IpcMode.IsContainer() && hc.IpcMode.Container() == "" {
		return errs.Invalid("invalid IPC mode: %v", hc.IpcMode)
	}
	if !hc.PidMode.Valid() {
		return errs.Invalid("invalid PID mode: %v", hc.PidMode)
	}
	if !hc.UTSMode.Valid() {
		return errs.Invalid("invalid UTS mode: %v", hc.UTSMode)
	}
	if !hc.UsernsMode.Valid() {
		return errs.Invalid("invalid USER mode: %v", hc.UsernsMode)
	}
	if !hc.CgroupnsMode.Valid() {
		return errs.Invalid("invalid cgroup namespace mode: %v", hc.CgroupnsMode)
	}
	if hc.Cgroup != "" {
		return errs.Invalid("cgroup %q: joining another container's cgroup is not supported", hc.Cgroup)
	}
	if hc.UTSMode.IsHost() && c.Hostname != "" {
		return errs.Invalid("conflicting options: hostname and the UTS mode")
	}
	if hc.UTSMode.IsHost() && c.Domainname != "" {
		return errs.Invalid("conflicting options: domainname and the UTS mode")
	}
	if d.remapped(hc.UsernsMode) {
		switch {
		case hc.Privileged:
			return errs.Invalid("privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode")
		case hc.NetworkMode.IsHost():
			return errs.Invalid("cannot share the host's network namespace when user namespaces are enabled")
		case hc.PidMode.IsHost():
			return errs.Invalid("cannot share the host PID namespace when user namespaces are enabled")
		}
	}
	return nil
}

// FindInit returns the path of the init for --init: the configured path, or
// docker-init, tini or our own holdfast-init, next to the daemon or in PATH. The
// error is of kind errdefs.ErrFailedPrecondition.
func FindInit(configured, besideDir string) (string, error) {
	if configured != "" {
		if p, err := exec.LookPath(configured); err == nil {
			return p, nil
		}
		return "", errs.Unmet("the init binary %q can't be run: set init-path to one that can", configured)
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
	return "", errs.Unmet(`exec: "docker-init": executable file not found in $PATH: install tini, or set init-path, to use --init`)
}

func executable(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// statExists only returns false if the path certainly does not exist.
func statExists(p string) (bool, error) {
	_, err := os.Stat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
