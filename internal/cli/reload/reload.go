// SPDX-License-Identifier: Apache-2.0

// Package reload is "holdfast daemon reload": it shows the effect of a reload
// on each changed key of daemon.json. It asks the daemon, and decides nothing
// itself.
package reload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"text/tabwriter"

	"holdfast/internal/timeline"
)

// Path is the API's path for plans and reloads.
const Path = "/holdfast/v1/reload"

// Plan is the daemon's answer.
type Plan struct {
	File    string   `json:"file"`
	Changes []Change `json:"changes"`
	Error   string   `json:"error,omitempty"` // why the file can't be used at all
}

// Change is a changed key, with values as in daemon.json. Reload and Restart
// are "live", "new objects", "needs a restart", "error" or "nothing".
type Change struct {
	Key     string          `json:"key"`
	Old     json.RawMessage `json:"old"`
	New     json.RawMessage `json:"new"`
	Reload  string          `json:"reload"`
	Restart string          `json:"restart"`
	Why     string          `json:"why,omitempty"`
}

// Fetch asks the daemon that dial connects to: with the method GET for the
// effect of a reload, with POST to reload.
func Fetch(ctx context.Context, method string, dial func(context.Context) (net.Conn, error)) (Plan, error) {
	web := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	// The URL needs a host, but dial chooses the address.
	req, err := http.NewRequestWithContext(ctx, method, "http://holdfast"+Path, nil)
	if err != nil {
		return Plan{}, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return Plan{}, fmt.Errorf("the daemon does not answer; it reads its configuration when it starts: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return Plan{}, fmt.Errorf("read the daemon's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var refusal struct{ Message string }
		if json.Unmarshal(body, &refusal) != nil || refusal.Message == "" {
			refusal.Message = resp.Status
		}
		if resp.StatusCode == http.StatusNotFound {
			return Plan{}, fmt.Errorf("this daemon can't reload through the API (%s): send it SIGHUP", refusal.Message)
		}
		return Plan{}, errors.New("nothing was changed: " + refusal.Message)
	}
	var p Plan
	if err := json.Unmarshal(body, &p); err != nil {
		return Plan{}, fmt.Errorf("read the daemon's answer: %w", err)
	}
	return p, nil
}

// Print writes the plan as a table for people.
func Print(out io.Writer, p Plan) error {
	if len(p.Changes) == 0 {
		_, err := fmt.Fprintf(out, "Nothing has changed in %s.\n", p.File)
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprint(w, "KEY\tOLD\tNEW\tBY RELOAD\tBY RESTART\tNOTE\n")
	for _, c := range p.Changes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", timeline.Plain(c.Key), value(c.Old), value(c.New), c.Reload, c.Restart, timeline.Plain(c.Why))
	}
	return w.Flush()
}

// value shows JSON, a string without its quotes. It keeps long values and line
// breaks from breaking the table, and control characters from reaching the
// terminal.
func value(raw json.RawMessage) string {
	s := string(raw)
	var text string
	if json.Unmarshal(raw, &text) == nil {
		s = text
	} else if s == "[]" || s == "{}" || s == "null" {
		s = ""
	}
	s = timeline.Plain(strings.Join(strings.Fields(s), " "))
	if s == "" {
		return "-"
	}
	if r := []rune(s); len(r) > 40 {
		return string(r[:39]) + "…"
	}
	return s
}
