// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/url"
	"sync/atomic"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/context/docker"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"holdfast/internal/cli/nodaemon"
)

// fallBack lets commands work without a daemon on a Unix socket: the shims then
// answer the requests that they can. It opens no connection by itself.
func fallBack(cli *command.DockerCli, quiet bool) error {
	meta, err := cli.ContextStore().GetMetadata(cli.CurrentContext())
	if err != nil {
		return nil // the command itself reports the error in the context
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
		if !quiet && !showsHelp.Load() {
			fmt.Fprintf(cli.Err(), "holdfast: no daemon answers on %s: asking the containers' shims\n", socket)
		}
	})
	return command.WithAPIClientOptions(client.WithDialContext(dialer.DialContext))(cli)
}

// showsHelp is set when help is shown. Help asks the daemon which commands to
// hide, and must not wait if there is no daemon.
var showsHelp atomic.Bool

// aboutDaemon reports whether a command is about the daemon, so that answers
// from elsewhere would be wrong.
func aboutDaemon(cmd *cobra.Command) bool {
	for ; cmd != nil; cmd = cmd.Parent() {
		if v := cmd.Annotations[ofDaemon]; v != "" {
			return v == "yes"
		}
	}
	return false
}

// ofDaemon is an annotation: "yes" for commands about the daemon and those
// below them, "no" for exceptions below them.
const ofDaemon = "holdfast-daemon"
