package oci

import (
	"path"
	"slices"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ExecOptions are the container's side of an exec session.
type ExecOptions struct {
	Host Host
	// Config and HostConfig are the container's.
	Config     *container.Config
	HostConfig *container.HostConfig
}

// ExecProcess makes the process of an exec session: the container's own
// process (its specification's) with what the request changes. Users are
// looked up below rootfs, the container's root filesystem as the host sees it.
// Errors are of kind errdefs.ErrInvalidArgument.
func ExecProcess(base *specs.Process, rootfs string, req container.ExecCreateRequest, o ExecOptions) (*specs.Process, error) {
	if len(req.Cmd) == 0 {
		return nil, invalid("No exec command specified")
	}
	if err := validateEnv(req.Env); err != nil {
		return nil, err
	}
	p := *base
	p.Args = slices.Clone(req.Cmd)
	p.Terminal = req.Tty
	p.ConsoleSize = nil
	if req.Tty && req.ConsoleSize != nil && req.ConsoleSize[0] > 0 {
		p.ConsoleSize = &specs.Box{Height: req.ConsoleSize[0], Width: req.ConsoleSize[1]}
	}
	if req.WorkingDir != "" {
		if !path.IsAbs(req.WorkingDir) {
			return nil, invalid("Cwd must be an absolute path")
		}
		p.Cwd = path.Clean(req.WorkingDir)
	}

	env := slices.Clone(base.Env)
	if req.User != "" {
		var groups []string
		if o.HostConfig != nil {
			groups = o.HostConfig.GroupAdd
		}
		u, home, err := resolveUser(rootfs, req.User, groups)
		if err != nil {
			return nil, err
		}
		u.Umask = base.User.Umask
		p.User = u
		// HOME goes with the user unless the container's configuration set it.
		if o.Config == nil || !hasEnv(o.Config.Env, "HOME") {
			env = withHome(overrideEnv(env, []string{"HOME"}), home)
		}
	}
	if req.Tty && !hasEnv(env, "TERM") {
		env = append(env, "TERM=xterm")
	}
	p.Env = overrideEnv(env, req.Env)

	var bounding []string
	if base.Capabilities != nil {
		bounding = base.Capabilities.Bounding
	}
	if req.Privileged {
		bounding = slices.Clone(o.Host.Caps)
		if p.ApparmorProfile != "" {
			p.ApparmorProfile = unconfined
		}
	}
	p.Capabilities = capabilitySets(bounding, p.User.UID)
	// Ours to give to the first process alone: a later one can't lower it.
	p.OOMScoreAdj = nil
	return &p, nil
}
