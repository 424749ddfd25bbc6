// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"net/http"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/formatter"
	"github.com/spf13/cobra"

	"holdfast/internal/cli/reload"
)

func newReloadCommand(docker command.Cli) *cobra.Command {
	var dryRun bool
	var format string
	cmd := &cobra.Command{
		Use:   "reload [OPTIONS]",
		Short: "Reload the daemon's configuration and show the effect of each change",
		Long: `Reload the daemon's configuration and show the effect of each change.

A change is "live", applies to "new objects", "needs a restart", or is an "error"
with the reason, in which case nothing in the file is applied. Containers keep what
they were created with. The exit code is 1 when the configuration can't be used.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != formatter.TableFormatKey && format != formatter.JSONFormatKey {
				return cli.StatusError{StatusCode: 64, Status: "unknown format " + format + ": want table or json"}
			}
			method := http.MethodPost
			if dryRun {
				method = http.MethodGet
			}
			plan, err := reload.Fetch(cmd.Context(), method, docker.Client().Dialer())
			if err != nil {
				return err
			}
			if format == formatter.JSONFormatKey {
				enc := json.NewEncoder(docker.Out())
				enc.SetIndent("", "  ")
				err = enc.Encode(plan)
			} else {
				err = reload.Print(docker.Out(), plan)
			}
			if err == nil && plan.Error != "" {
				return cli.StatusError{StatusCode: 1, Status: "neither a reload nor a start would accept " + plan.File + ": " + plan.Error}
			}
			return err
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "Show the effect of each change without applying it")
	cmd.Flags().StringVarP(&format, "format", "f", "", `Format of the output: "table" or "json"`)
	return cmd
}
