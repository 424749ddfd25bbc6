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
	// DefaultHost is where holdfastd listens unless told otherwise.
	DefaultHost = "unix:///run/holdfast/holdfast.sock"
	// EnvHost names a daemon for holdfast alone; docker does not read it.
	EnvHost = "HOLDFAST_HOST"
)

// target is the daemon that the command talks to, as far as we chose it.
type target struct {
	opts *cliflags.ClientOptions
	// host is set when neither --host, DOCKER_HOST nor a docker context named
	// the daemon, so that a plugin has to be told.
	host string
}

// chooseHost applies HOLDFAST_HOST, which goes before DOCKER_HOST and
// DOCKER_CONTEXT, and after --host and --context.
func chooseHost(opts *cliflags.ClientOptions) *target {
	t := &target{opts: opts}
	if host := os.Getenv(EnvHost); host != "" && len(opts.Hosts) == 0 && opts.Context == "" {
		t.host = host
		opts.Hosts = []string{host}
	}
	return t
}

// option makes Holdfast the daemon of Docker's "default" context. It runs once
// Docker's own rules have chosen the context, and before the endpoint is
// resolved. With TLS asked for and no host, Docker's rule (tcp on localhost)
// stays.
func (t *target) option() command.CLIOption {
	return command.WithContextResolver(func(docker *command.DockerCli) (string, error) {
		if docker.CurrentContext() == command.DefaultContextName &&
			len(t.opts.Hosts) == 0 && os.Getenv(client.EnvOverrideHost) == "" && t.opts.TLSOptions == nil {
			t.host = DefaultHost
			t.opts.Hosts = []string{DefaultHost}
		}
		return "", nil
	})
}

func userAgent() string {
	return "Holdfast-Client/" + version.Version + " (" + runtime.GOOS + ")"
}
