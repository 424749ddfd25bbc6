package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// setNamespaces lists the namespaces that the container doesn't share with the
// host: new ones, and those that it joins by path.
func setNamespaces(s *specs.Spec, in Input, _ Security) error {
	c, hc, join := in.Config, in.HostConfig, in.Namespaces
	add := func(t specs.LinuxNamespaceType, path string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	add(specs.MountNamespace, "")

	switch {
	case c.NetworkDisabled, hc.NetworkMode.IsNone():
		add(specs.NetworkNamespace, join.Net) // empty: a new one with nothing but lo
	case hc.NetworkMode.IsHost():
	case join.Net == "":
		return unmet("container %s: network mode %s needs the path of its network namespace", in.ID, hc.NetworkMode)
	default:
		add(specs.NetworkNamespace, join.Net)
	}

	if !hc.UTSMode.IsHost() {
		add(specs.UTSNamespace, join.UTS)
		// Joining a namespace doesn't rename it.
		if join.UTS == "" {
			s.Hostname = c.Hostname
		}
	}

	switch {
	case hc.PidMode.IsHost():
	case hc.PidMode.IsContainer() && join.PID == "":
		return unmet("container %s: pid mode %s needs the path of that container's namespace", in.ID, hc.PidMode)
	default:
		add(specs.PIDNamespace, join.PID)
	}

	switch {
	case hc.IpcMode.IsHost():
	case hc.IpcMode.IsContainer() && join.IPC == "":
		return unmet("container %s: ipc mode %s needs the path of that container's namespace", in.ID, hc.IpcMode)
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
