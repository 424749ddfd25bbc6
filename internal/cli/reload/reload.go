// Package reload is what "holdfast daemon reload" shows: what becomes of each
// key of daemon.json that has changed. It asks the daemon, and decides nothing.
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
)

// Path is where the API tells and takes a Plan.
const Path = "/holdfast/v1/reload"

// Plan is the daemon's answer.
type Plan struct {
	File    string   `json:"file"`
	Changes []Change `json:"changes"`
	Error   string   `json:"error,omitempty"` // why the file can't be taken at all
}

// Change is a changed key. Reload and Restart are "live", "new objects only",
// "refused" or "nothing".
type Change struct {
	Key     string `json:"key"`
	Old     string `json:"old"`
	New     string `json:"new"`
	Reload  string `json:"reload"`
	Restart string `json:"restart"`
	Why     string `json:"why,omitempty"`
}

// Fetch asks the daemon that dial connects to: with the method GET what a
// reload would do, with POST to do it.
func Fetch(ctx context.Context, method string, dial func(context.Context) (net.Conn, error)) (Plan, error) {
	web := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	// The host is a formality: dial knows where to go.
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
			return Plan{}, fmt.Errorf("the daemon there can't reload over the API (%s): send it SIGHUP", refusal.Message)
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
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Key, value(c.Old), value(c.New), c.Reload, c.Restart, c.Why)
	}
	return w.Flush()
}

// value keeps a long value, and one of several lines, from breaking the table.
func value(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if s == "" {
		return "-"
	}
	if r := []rune(s); len(r) > 40 {
		return string(r[:39]) + "…"
	}
	return s
}
