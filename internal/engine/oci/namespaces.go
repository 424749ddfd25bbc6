// SPDX-License-Identifier: Apache-2.0

package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/errs"
)

// setNamespaces sets the namespaces that the container does not share with the
// host: new ones, and those that it joins by path.
func setNamespaces(s *specs.Spec, in Input, _ Security) error {
	c, hc, join := in.Config, in.HostConfig, in.Namespaces
	add := func(t specs.LinuxNamespaceType, path string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	add(specs.MountNamespace, "")

	switch {
	case c.NetworkDisabled, hc.NetworkMode.IsNone():
		add(specs.NetworkNamespace, join.Net) // empty means a new one with only lo
	case hc.NetworkMode.IsHost():
	case join.Net == "":
		return errs.Unmet("container %s: network mode %s needs the path of its network namespace", in.ID, hc.NetworkMode)
	default:
		add(specs.NetworkNamespace, join.Net)
	}

	if !hc.UTSMode.IsHost() {
		add(specs.UTSNamespace, join.UTS)
		// The host name of a joined namespace must not be changed.
		if join.UTS == "" {
			s.Hostname = c.Hostname
		}
	}

	switch {
	case hc.PidMode.IsHost():
	case hc.PidMode.IsContainer() && join.PID == "":
		return errs.Unmet("container %s: pid mode %s needs the path of that container's namespace", in.ID, hc.PidMode)
	default:
		add(specs.PIDNamespace, join.PID)
	}

	switch {
	case hc.IpcMode.IsHost():
	case hc.IpcMode.IsContainer() && join.IPC == "":
		return errs.Unmet("container %s: ipc mode %s needs the path of that container's namespace", in.ID, hc.IpcMode)
	default:
		add(specs.IPCNamespace, join.IPC)
	}

	if hc.CgroupnsMode.IsPrivate() && in.Host.CgroupNamespaces {
		add(specs.CgroupNamespace, "")
	}
	if in.Defaults.remapped(hc.UsernsMode) {
		add(specs.UserNamespace, join.User)
		if join.User == "" {
			s.Linux.UIDMappings = in.Defaults.UIDMappings
			s.Linux.GIDMappings = in.Defaults.GIDMappings
		}
	}
	return nil
}
