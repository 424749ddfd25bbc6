// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/apparmor"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"

	"holdfast/internal/errs"
)

const (
	unconfined     = "unconfined"
	seccompBuiltin = "builtin"
)

// AppArmorProfile is the name of the default AppArmor profile.
const AppArmorProfile = "holdfast-default"

// setSeccomp must be called last, because the profile depends on the
// capabilities.
func setSeccomp(s *specs.Spec, in Input, sec Security) error {
	profile := sec.Seccomp
	if profile == "" && !in.HostConfig.Privileged {
		profile = in.Defaults.SeccompProfile
	}
	if profile == unconfined || profile == "" && in.HostConfig.Privileged {
		return nil
	}
	builtin := profile == "" || profile == seccompBuiltin
	if !in.Host.Seccomp {
		if builtin {
			return nil
		}
		return errs.Unmet("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
	}
	var err error
	if builtin {
		s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	} else {
		s.Linux.Seccomp, err = loadSeccomp(profile, s)
	}
	if err != nil {
		return errs.Invalid("seccomp profile: %v", err)
	}
	return nil
}

// CheckSeccomp validates the JSON text of a seccomp profile. It returns
// errdefs.ErrInvalidArgument.
func CheckSeccomp(profile string) error {
	if _, err := loadSeccomp(profile, &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}); err != nil {
		return errs.Invalid("%v", err)
	}
	return nil
}

// loadSeccomp parses the JSON text of a profile. It refuses an empty profile and
// does not take it for one that filters nothing: a file that was truncated or
// never written must not switch the filter off.
func loadSeccomp(profile string, s *specs.Spec) (*specs.LinuxSeccomp, error) {
	filter, err := seccomp.LoadProfile(profile, s)
	if err == nil && filter == nil {
		err = errors.New(`it has neither a default action nor system calls: say "unconfined" to run without a filter`)
	}
	return filter, err
}

func appArmorProfile(h Host, privileged bool, sec Security) string {
	switch {
	case !h.AppArmor:
		return ""
	case sec.AppArmor != "":
		return sec.AppArmor
	case privileged:
		return unconfined
	}
	return AppArmorProfile
}

// AskedAppArmor returns the profile that a container asks for, or "" for the
// default.
func AskedAppArmor(hc *container.HostConfig) string {
	sec, err := ParseSecurityOpts(hc.SecurityOpt)
	if err != nil {
		return "" // the options were validated when the container was created
	}
	return sec.AppArmor
}

// EnsureAppArmor loads the default profile if the kernel has AppArmor and the
// profile is missing, because another program may have unloaded it. It runs
// apparmor_parser.
func EnsureAppArmor(h Host) error {
	if !h.AppArmor {
		return nil
	}
	if loaded, err := apparmor.IsLoaded(AppArmorProfile); err == nil && loaded {
		return nil
	}
	if err := apparmor.InstallDefault(AppArmorProfile); err != nil {
		return errs.Unmet("AppArmor is enabled, and the profile %s can't be loaded: %v", AppArmorProfile, err)
	}
	return nil
}

// Labels returns a new container's SELinux labels, or empty ones if SELinux is
// off. The caller must store them with the container, because each call makes new
// ones.
func Labels(h Host, hc *container.HostConfig, d Defaults) (process, mount string, err error) {
	if !h.SELinux || !d.SELinux {
		return "", "", nil
	}
	sec, err := ParseSecurityOpts(hc.SecurityOpt)
	if err != nil {
		return "", "", err
	}
	opts := sec.Labels
	if len(opts) == 0 && (hc.Privileged || hc.IpcMode.IsHost() || hc.PidMode.IsHost()) {
		opts = selinux.DisableSecOpt()
	}
	process, mount, err = label.InitLabels(opts)
	if err != nil {
		return "", "", errs.Invalid("invalid SELinux label: %v", err)
	}
	return process, mount, nil
}
