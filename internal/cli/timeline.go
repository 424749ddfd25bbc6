// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/formatter"
	"github.com/spf13/cobra"

	"holdfast/internal/timeline"
)

// timelineWidth is the width of the picture if the terminal's width is unknown.
const timelineWidth = 100

func newTimelineCommand(docker command.Cli) *cobra.Command {
	var page, since, format string
	cmd := &cobra.Command{
		Use:   "timeline [OPTIONS]",
		Short: "Draw the lives of the daemon above the lives of the containers",
		Long: `Draw the lives of the daemon above the lives of the containers.

The daemon and each container have a line. It shows what went on while
the daemon was stopped, crashed or upgraded. When no daemon answers, its files
and those of the shims are read instead.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return cli.StatusError{StatusCode: 64, Status: err.Error()}
			}
			if format != "" && format != formatter.TableFormatKey && format != formatter.JSONFormatKey {
				return cli.StatusError{StatusCode: 64, Status: "unknown format " + format + ": want table or json"}
			}
			t, err := fetchTimeline(cmd.Context(), docker.Client().Dialer(), from)
			if err != nil {
				return err
			}
			return showTimeline(docker, t, page, format)
		},
		DisableFlagsInUseLine: true,
		Annotations:           map[string]string{ofDaemon: "no"},
	}
	cmd.Flags().StringVar(&page, "html", "", `Write a page to this file instead ("-" for standard output)`)
	cmd.Flags().StringVar(&since, "since", "24h", `Begin at this time, or this long ago ("2h", "7d", "2030-12-31T23:59:59"; "all" for the first record)`)
	cmd.Flags().StringVarP(&format, "format", "f", "", `Format of the output: "table" or "json"`)
	return cmd
}

func showTimeline(docker command.Cli, t timeline.Timeline, page, format string) error {
	switch {
	case page == "-":
		_, err := io.WriteString(docker.Out(), timeline.HTML(t, time.Local))
		return err
	case page != "":
		if err := os.WriteFile(page, []byte(timeline.HTML(t, time.Local)), 0o644); err != nil {
			return fmt.Errorf("write the page: %w", err)
		}
		return nil
	case format == formatter.JSONFormatKey:
		enc := json.NewEncoder(docker.Out())
		enc.SetIndent("", "  ")
		return enc.Encode(t)
	}
	o := timeline.TextOptions{Width: timelineWidth, Zone: time.Local}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		o.Width = n
	}
	if docker.Out().IsTerminal() {
		if _, width := docker.Out().GetTtySize(); width > 0 {
			o.Width = int(width)
		}
		o.Colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	_, err := io.WriteString(docker.Out(), timeline.Text(t, o))
	return err
}

// fetchTimeline requests the timeline over a connection of dial.
func fetchTimeline(ctx context.Context, dial func(context.Context) (net.Conn, error), since time.Time) (timeline.Timeline, error) {
	var t timeline.Timeline
	web := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	path := "http://holdfast/holdfast/v1/timeline"
	if !since.IsZero() {
		path += "?since=" + url.QueryEscape(since.Format(time.RFC3339Nano))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return t, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return t, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var refusal struct{ Message string }
		if json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&refusal) != nil || refusal.Message == "" {
			refusal.Message = resp.Status
		}
		return t, fmt.Errorf("the daemon has no timeline: %s", refusal.Message)
	}
	if err := json.NewDecoder(resp.Body).Decode(&t); err != nil {
		return t, fmt.Errorf("read the timeline: %w", err)
	}
	return t, nil
}

// parseSince parses a time, or a duration before now. "all" is the zero time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "all" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 {
			return now.Add(-time.Duration(n * 24 * float64(time.Hour))), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("invalid --since %q: want a duration before now (90m, 2h, 7d), a time (2030-12-31T23:59:59), or all", s)
}
