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

// upgradePath is where the API starts another daemon in its place.
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
		Short: "Put another daemon in the running one's place, without a pause for clients",
		Long: `Put another daemon in the running one's place, without a pause for clients.

The running daemon starts the other one with its own arguments and hands over
to it. No request is refused meanwhile, and no container notices. If the other
one does not come up, the running one goes on.

With --shims the shims of the running containers are upgraded instead: each goes
on as another binary in its own process, with all that it holds. One that can't
goes on as it is.`,
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
	cmd.Flags().StringVar(&o.Binary, "binary", "", "Path of the holdfastd to start, or with --shims of the holdfast-shim, on the daemon's host (default: where the running one was started from)")
	cmd.Flags().BoolVar(&shims, "shims", false, "Upgrade the shims of the running containers instead of the daemon")
	cmd.Flags().IntVar(&o.Wait, "wait", 0, "Seconds to wait for requests under way, such as pulls, before giving up (default 30)")
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
	// The host is a formality: dial knows where to go.
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
		return upgradeAnswer{}, errors.New("the daemon there can't hand over: it is of a release without upgrades in place, or another engine")
	case resp.StatusCode != http.StatusOK && a.Message != "":
		return upgradeAnswer{}, errors.New(a.Message)
	case resp.StatusCode != http.StatusOK:
		return upgradeAnswer{}, errors.New(resp.Status)
	case jsonErr != nil:
		return upgradeAnswer{}, fmt.Errorf("read the daemon's answer: %w", jsonErr)
	}
	return a.upgradeAnswer, nil
}
