// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cli

import (
	"errors"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

func newDemoCommand(command.Cli) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Kill a daemon under a running container and show that the container does not notice",
		Args:  cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("the demo starts a daemon, which runs on Linux only; run it there")
		},
	}
}
