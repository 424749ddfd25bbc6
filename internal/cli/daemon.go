// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/formatter"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/docker/cli/templates"
	"github.com/spf13/cobra"

	"holdfast/internal/cli/status"
)

// defaultExecRoot is the default of the daemon's --exec-root.
const defaultExecRoot = "/run/holdfast"

func newDaemonCommand(docker command.Cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Inspect, reload and upgrade the daemon",
		Args:  cli.NoArgs,
		RunE:  command.ShowHelp(docker.Err()),
		// Commands about the daemon must not be answered by an observer.
		Annotations: map[string]string{ofDaemon: "yes"},
	}
	cmd.AddCommand(newStatusCommand(docker), newTimelineCommand(docker), newReloadCommand(docker), newUpgradeCommand(docker))
	return cmd
}

func newStatusCommand(docker command.Cli) *cobra.Command {
	var format, execRoot string
	cmd := &cobra.Command{
		Use:   "status [OPTIONS]",
		Short: "Show the daemon, its shims and how many restarts of the daemon the containers have outlasted",
		Long: `Show the daemon, its shims and how many restarts of the daemon the containers have outlasted.

When no daemon answers, the shims' own records are read instead and the exit
code is 1.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runStatus(cmd.Context(), docker, format, execRoot)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", cliflags.InspectFormatHelp)
	cmd.Flags().StringVar(&execRoot, "exec-root", "", "Where to look for shims when no daemon answers (default: the folder of the daemon's socket)")
	return cmd
}

func runStatus(ctx context.Context, docker command.Cli, format, execRoot string) error {
	print, err := statusPrinter(docker, format)
	if err != nil {
		return err
	}
	s, err := status.Fetch(ctx, docker.Client().Dialer())
	if err == nil {
		return print(s)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	host := docker.DockerEndpoint().Host
	what := "not answering"
	if errors.Is(err, status.ErrNoStatus) {
		what = "unknown"
	}
	s.Error = fmt.Sprintf("%s: %s: %v", what, host, err)
	if execRoot == "" {
		execRoot = execRootOf(host)
	}
	var errShims error
	if execRoot != "" {
		s.Containers, errShims = status.ReadShims(ctx, execRoot)
	}
	if err := print(s); err != nil {
		return err
	}
	if errShims != nil {
		return fmt.Errorf("can't list the shims: %w", errShims)
	}
	// The printed tables contain the reason already.
	return cli.StatusError{StatusCode: 1}
}

// execRootOf derives the exec root from the daemon's address. For a daemon on
// another machine it is empty.
func execRootOf(host string) string {
	u, err := url.Parse(host)
	if err != nil || u.Scheme != "unix" {
		return ""
	}
	if dir := path.Dir(u.Path); strings.HasSuffix(u.Path, "/holdfast.sock") {
		return dir
	}
	return defaultExecRoot
}

func statusPrinter(docker command.Cli, format string) (func(status.Status) error, error) {
	switch format {
	case "":
		return func(s status.Status) error { return status.Print(docker.Out(), s, time.Now()) }, nil
	case formatter.JSONFormatKey:
		return func(s status.Status) error {
			if s.Containers == nil {
				s.Containers = []status.Container{} // encodes as [] and not as null
			}
			enc := json.NewEncoder(docker.Out())
			enc.SetIndent("", "  ")
			return enc.Encode(s)
		}, nil
	}
	tmpl, err := templates.Parse(format)
	if err != nil {
		return nil, cli.StatusError{StatusCode: 64, Status: "template parsing error: " + err.Error()}
	}
	return func(s status.Status) error {
		if err := tmpl.Execute(docker.Out(), s); err != nil {
			return err
		}
		_, err := fmt.Fprintln(docker.Out())
		return err
	}, nil
}
