// Package oci turns what was asked of a container over the API into what an
// OCI runtime is told: it knows what the host can do (Probe), judges a request
// (Validate, Update), and writes the runtime's configuration (Build,
// ExecProcess, Resources) and the files of the sandbox (Hosts, ResolvConf,
// Hostname).
//
// It reads the host, a container's /etc/passwd and /etc/group, and device
// nodes; it changes nothing. It knows no image, network, volume or store:
// paths and namespaces come resolved from the caller.
//
// Defaults, names and messages are those of the Docker Engine API
// (https://docs.docker.com/reference/api/engine/), the configuration that of
// the OCI runtime specification
// (https://github.com/opencontainers/runtime-spec/blob/main/config.md).
package oci

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// invalid is an error of kind errdefs.ErrInvalidArgument whose message is the
// formatted text alone.
func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// conflict is an error of kind errdefs.ErrConflict.
func conflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

// unmet is an error of kind errdefs.ErrFailedPrecondition.
func unmet(format string, args ...any) error {
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf(format, args...))
}
