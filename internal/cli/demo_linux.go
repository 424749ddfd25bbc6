// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"

	"holdfast/internal/cli/demo"
)

func newDemoCommand(docker command.Cli) *cobra.Command {
	var binary string
	var showLog bool
	cmd := &cobra.Command{
		Use:   "demo [OPTIONS]",
		Short: "Kill a daemon under a running container and show that the container does not notice",
		Long: `Kill a daemon under a running container and show that the container does not notice.

A private daemon is started in a temporary folder, with a network of its own.
The daemons and containers that are already there are left alone. The exit code
is 0 if every promise was kept. It needs root and runc, and takes 10 seconds.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := demo.Options{Daemon: binary, Out: docker.Out()}
			if showLog {
				o.DaemonLog = docker.Err()
			}
			return demo.Run(cmd.Context(), o)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&binary, "daemon", "", "Path to holdfastd (default: beside this program)")
	cmd.Flags().BoolVar(&showLog, "daemon-log", false, "Show what the daemon logs as it goes")
	return cmd
}
