// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/shim/proto"
)

// runtimes calls the OCI runtimes of the daemon's configuration.
type runtimes struct {
	config *settings
	host   oci.Host
}

// delete deletes a container in its OCI runtime, kills its processes and removes its
// cgroups. It is idempotent.
func (r *runtimes) delete(spec container.Spec) error {
	rt, err := r.call(spec)
	if err != nil {
		return err
	}
	if r.has(spec) {
		out, err := exec.CommandContext(context.Background(), rt.Path, append(rt.Args, "delete", "--force", spec.ID)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s delete: %w: %s", rt.Path, err, bytes.TrimSpace(out))
		}
	}
	return r.removeCgroups(spec)
}

// thaw resumes the frozen processes of a container.
func (r *runtimes) thaw(spec container.Spec) error {
	rt, err := r.call(spec)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(context.Background(), rt.Path, append(rt.Args, "resume", spec.ID)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s resume: %w: %s", rt.Path, err, bytes.TrimSpace(out))
	}
	return nil
}

// removeCgroups removes what a runtime leaves that was killed while it started the
// container, before it had recorded anything.
func (r *runtimes) removeCgroups(spec container.Spec) error {
	return oci.RemoveCgroups(r.host.CgroupDirs(spec.CgroupDriver, oci.CgroupPath(spec.CgroupDriver, spec.CgroupParent, spec.ID)))
}

// call returns how to call a container's OCI runtime: the runtime's name is
// fixed when the container is created, its path and options are those that the
// daemon's configuration now has for that name.
func (r *runtimes) call(spec container.Spec) (proto.Runtime, error) {
	rt, ok := r.config.Load().runtimes()[spec.Runtime]
	if !ok {
		return proto.Runtime{}, errs.Invalid("the runtime %q that the container was created with is not configured any more: add it to the daemon's option \"runtimes\"", spec.Runtime)
	}
	args := append([]string{"--root", r.root(spec)}, rt.Args...)
	if spec.CgroupDriver == oci.DriverSystemd {
		args = append(args, "--systemd-cgroup")
	}
	return proto.Runtime{Path: rt.Path, Args: args}, nil
}

// root is the folder of the OCI runtime's state. Each runtime has one, below
// the exec root of the container's present life.
func (r *runtimes) root(spec container.Spec) string {
	return filepath.Join(cmp.Or(spec.ExecRoot, r.config.Load().ExecRoot), "runtime", spec.Runtime)
}

// has reports whether the OCI runtime may have state of a container.
func (r *runtimes) has(spec container.Spec) bool {
	_, err := os.Stat(filepath.Join(r.root(spec), spec.ID))
	return !errors.Is(err, os.ErrNotExist)
}
