// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// upgradePath is the API's path for upgrading the daemon.
const upgradePath = "/holdfast/v1/upgrade"

type upgradeOptions struct {
	Binary string `json:"binary,omitempty"`
	Wait   int    `json:"wait,omitempty"` // seconds
}

type upgradeAnswer struct {
	Pid     int           `json:"pid"`
	Version string        `json:"version"`
	Before  string        `json:"before"`
	Pause   time.Duration `json:"pause"`
}

func newUpgradeCommand(docker command.Cli) *cobra.Command {
	var o upgradeOptions
	var shims bool
	cmd := &cobra.Command{
		Use:   "upgrade [OPTIONS]",
		Short: "Replace the running daemon by another one without a pause for clients",
		Long: `Replace the running daemon by another one without a pause for clients.

The running daemon starts the new one with its own arguments and hands over
to it. No request is refused meanwhile, and no container notices. If the new
one fails to start, the running one continues.

With --shims the shims of the running containers are upgraded instead: each
re-executes itself with the new binary and keeps its process and its state. A
shim that can't be upgraded stays as it is.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Wait < 0 {
				return errors.New("--wait: want 0 or more seconds")
			}
			if o.Binary != "" {
				path, err := filepath.Abs(o.Binary)
				if err != nil {
					return err
				}
				o.Binary = path
			}
			if shims {
				if cmd.Flags().Changed("wait") {
					return errors.New("--wait has no meaning with --shims")
				}
				return upgradeShims(cmd.Context(), docker.Client().Dialer(), o.Binary, docker.Out(), docker.Err())
			}
			a, err := upgradeDaemon(cmd.Context(), docker.Client().Dialer(), o)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(docker.Out(), "The daemon is now version %s, pid %d (before: version %s). Requests waited for %s.\n",
				a.Version, a.Pid, a.Before, a.Pause.Round(100*time.Microsecond))
			return err
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&o.Binary, "binary", "", "Path of the holdfastd to start, or with --shims of the holdfast-shim, on the daemon's host (default: the path of the running one)")
	cmd.Flags().BoolVar(&shims, "shims", false, "Upgrade the shims of the running containers instead of the daemon")
	cmd.Flags().IntVar(&o.Wait, "wait", 0, "Seconds to wait for running requests, such as pulls, before giving up (default 30)")
	return cmd
}

// upgradeDaemon asks the daemon that dial connects to.
func upgradeDaemon(ctx context.Context, dial func(context.Context) (net.Conn, error), o upgradeOptions) (upgradeAnswer, error) {
	web := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	body, err := json.Marshal(o)
	if err != nil {
		return upgradeAnswer{}, err
	}
	// The URL needs a host, but dial chooses the address.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://holdfast"+upgradePath, bytes.NewReader(body))
	if err != nil {
		return upgradeAnswer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := web.Do(req)
	if err != nil {
		return upgradeAnswer{}, fmt.Errorf("the daemon does not answer: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return upgradeAnswer{}, fmt.Errorf("read the daemon's answer: %w", err)
	}
	var a struct {
		upgradeAnswer
		Message string `json:"message"`
	}
	jsonErr := json.Unmarshal(text, &a)
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return upgradeAnswer{}, errors.New("this daemon can't be upgraded in place: its release does not support that, or it is another engine")
	case resp.StatusCode != http.StatusOK && a.Message != "":
		return upgradeAnswer{}, errors.New(a.Message)
	case resp.StatusCode != http.StatusOK:
		return upgradeAnswer{}, errors.New(resp.Status)
	case jsonErr != nil:
		return upgradeAnswer{}, fmt.Errorf("read the daemon's answer: %w", jsonErr)
	}
	return a.upgradeAnswer, nil
}
