// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/errs"
)

// ExecOptions describe the container of an exec session.
type ExecOptions struct {
	Host Host
	// Config and HostConfig are the container's.
	Config     *container.Config
	HostConfig *container.HostConfig
}

// ExecProcess makes the process of an exec session: the process of the
// container's specification with the changes of the request. Users are looked up
// below rootfs, the container's root filesystem as the host sees it. Errors are
// of kind errdefs.ErrInvalidArgument.
func ExecProcess(base *specs.Process, rootfs string, req container.ExecCreateRequest, o ExecOptions) (*specs.Process, error) {
	if len(req.Cmd) == 0 {
		return nil, errs.Invalid("No exec command specified")
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
			return nil, errs.Invalid("Cwd must be an absolute path")
		}
		p.Cwd = path.Clean(req.WorkingDir)
	}

	// HOME follows the user, unless the container's configuration sets it.
	env, home := slices.Clone(base.Env), ""
	ours := o.Config == nil || !hasEnv(o.Config.Env, "HOME")
	if i := slices.IndexFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }); i >= 0 && ours {
		home = strings.TrimPrefix(env[i], "HOME=")
		env = slices.Delete(env, i, i+1)
	}
	if req.User != "" {
		var groups []string
		if o.HostConfig != nil {
			groups = o.HostConfig.GroupAdd
		}
		u, of, err := resolveUser(rootfs, req.User, groups)
		if err != nil {
			return nil, err
		}
		u.Umask = base.User.Umask
		p.User, home = u, of
	}
	if req.Tty && !hasEnv(env, "TERM") {
		env = withTerm(env)
	}
	p.Env = overrideEnv(env, req.Env)
	if ours {
		p.Env = withHome(p.Env, home)
	}

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
	// Only the first process gets it: a later process could not lower it again.
	p.OOMScoreAdj = nil
	return &p, nil
}
