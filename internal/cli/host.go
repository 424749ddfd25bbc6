// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"runtime"

	"github.com/docker/cli/cli/command"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/moby/moby/client"

	"holdfast/internal/version"
)

const (
	// DefaultHost is the default address of holdfastd.
	DefaultHost = "unix:///run/holdfast/holdfast.sock"
	// EnvHost is the environment variable that names a daemon for holdfast
	// alone; docker does not read it.
	EnvHost = "HOLDFAST_HOST"
)

// target is the daemon that the command uses, as far as holdfast has chosen it.
type target struct {
	opts *cliflags.ClientOptions
	// host is set if neither --host, DOCKER_HOST nor a docker context named the
	// daemon. A plugin must then be given the host.
	host string
}

// chooseHost applies HOLDFAST_HOST, which takes precedence over DOCKER_HOST and
// DOCKER_CONTEXT, but not over --host and --context.
func chooseHost(opts *cliflags.ClientOptions) *target {
	t := &target{opts: opts}
	if host := os.Getenv(EnvHost); host != "" && len(opts.Hosts) == 0 && opts.Context == "" {
		t.host = host
		opts.Hosts = []string{host}
	}
	return t
}

// option makes Holdfast the daemon of Docker's "default" context. It runs after
// Docker's own rules have chosen the context, and before the endpoint is
// resolved. If TLS is requested without a host, Docker's rule (tcp on
// localhost) applies.
func (t *target) option() command.CLIOption {
	return command.WithContextResolver(func(docker *command.DockerCli) (string, error) {
		if len(t.opts.Hosts) == 0 && os.Getenv(client.EnvOverrideHost) == "" && t.opts.TLSOptions == nil {
			// Set it even if another context is in use, because "context ls"
			// lists it.
			t.opts.Hosts = []string{DefaultHost}
			if docker.CurrentContext() == command.DefaultContextName {
				t.host = DefaultHost
			}
		}
		return "", nil
	})
}

func userAgent() string {
	return "Holdfast-Client/" + version.Version + " (" + runtime.GOOS + ")"
}
