// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/errs"
)

func validateSecurity(h Host, hc *container.HostConfig, d Defaults) error {
	if _, err := normalizeCaps(h, hc.CapAdd); err != nil {
		return errs.Invalid("invalid CapAdd: %v", err)
	}
	if _, err := normalizeCaps(h, hc.CapDrop); err != nil {
		return errs.Invalid("invalid CapDrop: %v", err)
	}
	sec, err := ParseSecurityOpts(hc.SecurityOpt)
	if err != nil {
		return err
	}
	switch sec.Seccomp {
	case "", seccompBuiltin, unconfined:
	default:
		if !h.Seccomp {
			return errs.Invalid("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
		}
		empty := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}
		if _, err := loadSeccomp(sec.Seccomp, empty); err != nil {
			return errs.Invalid("%v", err)
		}
	}
	if sec.AppArmor != "" && sec.AppArmor != unconfined && !h.AppArmor {
		return errs.Invalid("AppArmor is not enabled on this host, cannot run with the profile %q", sec.AppArmor)
	}
	if sec.WritableCgroups != nil && *sec.WritableCgroups && (h.InUserNamespace || d.remapped(hc.UsernsMode)) {
		return errs.Invalid("option WritableCgroups conflicts with user namespaces and rootless mode")
	}
	if err := validateDevices(hc); err != nil {
		return err
	}
	return validateUlimits(hc.Ulimits)
}

func validateDevices(hc *container.HostConfig) error {
	for _, r := range hc.DeviceRequests {
		return errs.Invalid("could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities)
	}
	for _, m := range hc.Devices {
		if m.PathOnHost == "" {
			return errs.Invalid("invalid device: the path on the host is empty")
		}
		if !strings.HasPrefix(m.PathOnHost, "/") || m.PathInContainer != "" && !strings.HasPrefix(m.PathInContainer, "/") {
			return errs.Invalid("%s is not an absolute path", m.PathOnHost)
		}
		if !validAccess(m.CgroupPermissions) && m.CgroupPermissions != "" {
			return errs.Invalid("invalid device mode: %s", m.CgroupPermissions)
		}
	}
	for _, r := range hc.DeviceCgroupRules {
		if _, err := parseDeviceRule(r); err != nil {
			return err
		}
	}
	return nil
}

// validAccess accepts one to three of r, w and m, each once.
func validAccess(s string) bool {
	if s == "" || len(s) > 3 {
		return false
	}
	for i, r := range s {
		if !strings.ContainsRune("rwm", r) || strings.ContainsRune(s[:i], r) {
			return false
		}
	}
	return true
}

func validateUlimits(list []*container.Ulimit) error {
	for _, u := range list {
		if u == nil {
			return errs.Invalid("invalid ulimit: it is empty")
		}
		if _, err := u.GetRlimit(); err != nil {
			return errs.Invalid("invalid ulimit type: %s", u.Name)
		}
		if u.Soft < -1 || u.Hard < -1 {
			return errs.Invalid("invalid ulimit %s: a limit is -1 (unlimited) or more", u.Name)
		}
		if u.Hard == -1 {
			continue
		}
		if u.Soft == -1 {
			return errs.Invalid("ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), hard: %d", u.Hard)
		}
		if u.Soft > u.Hard {
			return errs.Invalid("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
	}
	return nil
}

// ipcSysctls are the sysctls of the IPC namespace (ipc_namespaces(7)), except
// fs.mqueue.
var ipcSysctls = map[string]bool{
	"kernel.msgmax":          true,
	"kernel.msgmnb":          true,
	"kernel.msgmni":          true,
	"kernel.sem":             true,
	"kernel.shmall":          true,
	"kernel.shmmax":          true,
	"kernel.shmmni":          true,
	"kernel.shm_rmid_forced": true,
}

// validateSysctls accepts the sysctls of namespaces that the container does not
// share.
func validateSysctls(hc *container.HostConfig) error {
	for _, key := range sortedKeys(hc.Sysctls) {
		name := strings.ReplaceAll(key, "/", ".")
		deny := func(ns string) error {
			return errs.Invalid("%s", fmt.Sprintf("sysctl %q not allowed in host %s namespace", key, ns))
		}
		switch {
		case key == "" || strings.Contains(key, ".."):
			return errs.Invalid("sysctl %q is not allowed", key)
		case strings.HasPrefix(name, "net."):
			if hc.NetworkMode.IsHost() {
				return deny("network")
			}
		case ipcSysctls[name] || strings.HasPrefix(name, "fs.mqueue."):
			if hc.IpcMode.IsHost() {
				return deny("ipc")
			}
		case name == "kernel.domainname" || name == "kernel.hostname":
			if hc.UTSMode.IsHost() {
				return deny("uts")
			}
		default:
			return errs.Invalid("sysctl %q is not in a separate kernel namespace", key)
		}
	}
	return nil
}
