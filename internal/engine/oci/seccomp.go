package oci

import (
	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/apparmor"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
)

const (
	unconfined     = "unconfined"
	seccompBuiltin = "builtin"
)

// AppArmorProfile is the name of the profile for containers that ask for none.
const AppArmorProfile = "holdfast-default"

// setSeccomp comes last: the profile depends on the capabilities.
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
		return unmet("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
	}
	var err error
	if builtin {
		s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	} else {
		s.Linux.Seccomp, err = seccomp.LoadProfile(profile, s)
	}
	if err != nil {
		return invalid("seccomp profile: %v", err)
	}
	return nil
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

// EnsureAppArmor loads the default profile where the kernel has AppArmor and
// the profile is not there: others may have unloaded it. It runs
// apparmor_parser.
func EnsureAppArmor(h Host) error {
	if !h.AppArmor {
		return nil
	}
	if loaded, err := apparmor.IsLoaded(AppArmorProfile); err == nil && loaded {
		return nil
	}
	if err := apparmor.InstallDefault(AppArmorProfile); err != nil {
		return unmet("AppArmor is enabled, and the profile %s can't be loaded: %v", AppArmorProfile, err)
	}
	return nil
}

// Labels are a new container's SELinux labels, empty where SELinux is off. They
// are to be kept with the container: each call makes new ones.
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
		return "", "", invalid("invalid SELinux label: %v", err)
	}
	return process, mount, nil
}
