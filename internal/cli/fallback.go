package cli

import (
	"fmt"
	"net/url"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/context/docker"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"holdfast/internal/cli/nodaemon"
)

// fallBack lets a command go on without a daemon where it talks to one over a
// Unix socket: what shims can answer is answered by them. Nothing is connected
// here.
func fallBack(cli *command.DockerCli, quiet bool) error {
	meta, err := cli.ContextStore().GetMetadata(cli.CurrentContext())
	if err != nil {
		return nil // the command itself says what is wrong with the context
	}
	ep, err := docker.EndpointFromContext(meta)
	if err != nil {
		return nil
	}
	u, err := url.Parse(ep.Host)
	if err != nil || u.Scheme != "unix" {
		return nil
	}
	dialer := nodaemon.New(u.Path, func(socket string) {
		if !quiet {
			fmt.Fprintf(cli.Err(), "holdfast: no daemon answers on %s: asking the containers' shims\n", socket)
		}
	})
	return command.WithAPIClientOptions(client.WithDialContext(dialer.DialContext))(cli)
}

// aboutDaemon reports whether a command is about the daemon, so that others'
// answers in its place would be wrong.
func aboutDaemon(cmd *cobra.Command) bool {
	for ; cmd != nil; cmd = cmd.Parent() {
		if v := cmd.Annotations[ofDaemon]; v != "" {
			return v == "yes"
		}
	}
	return false
}

// ofDaemon annotates such commands and those below them with "yes", and those
// below them that are none with "no".
const ofDaemon = "holdfast-daemon"
