// Package status is what "holdfast daemon status" shows: the daemon, its
// earlier lives, and each container's shim. It asks the daemon, and reads the
// shims' own files where no daemon answers. It changes nothing.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Path is where the API answers with a Status.
const Path = "/holdfast/v1/status"

// Status is the daemon's answer, or what could be found without it.
type Status struct {
	// Daemon is nil when none answers; Error then says why.
	Daemon     *Daemon     `json:"daemon"`
	Error      string      `json:"error,omitempty"`
	Lives      []Life      `json:"lives,omitempty"`
	Containers []Container `json:"containers"`
}

// Daemon is the running daemon.
type Daemon struct {
	Version  string    `json:"version"`
	Pid      int       `json:"pid"`
	Started  time.Time `json:"started"`
	DataRoot string    `json:"dataRoot"`
	ExecRoot string    `json:"execRoot"`
}

// Life is one run of a daemon on this data root, the present one last.
type Life struct {
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"` // zero: not known, or goes on
	How     string    `json:"how,omitempty"`  // how it ended: clean, crash, …
}

// Container is one container and its shim.
type Container struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Status      string    `json:"status"`
	Pid         int       `json:"pid,omitempty"` // of its process, while it runs
	Started     time.Time `json:"started,omitzero"`
	ShimPid     int       `json:"shimPid,omitempty"` // 0: no shim lives
	ShimVersion string    `json:"shimVersion,omitempty"`
	// Lives is over how many of the daemon's lives this run of the container
	// has lasted; 1 is the present alone, 0 is not known.
	Lives int `json:"lives,omitempty"`
	// Note says what kept the state from being read.
	Note string `json:"note,omitempty"`
}

// ErrNoStatus is of a daemon that answers something else.
var ErrNoStatus = errors.New("the daemon there answers, but has no status")

// Fetch asks the daemon that dial connects to.
func Fetch(ctx context.Context, dial func(context.Context) (net.Conn, error)) (Status, error) {
	web := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	// The host is a formality: dial knows where to go.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://holdfast"+Path, nil)
	if err != nil {
		return Status{}, err
	}
	resp, err := web.Do(req)
	if err != nil {
		// Without the made-up URL in the message.
		for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
			err = inner
			if _, ok := inner.(*net.OpError); ok {
				break
			}
		}
		return Status{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return Status{}, fmt.Errorf("read the daemon's status: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var refusal struct{ Message string }
		if json.Unmarshal(body, &refusal) != nil || refusal.Message == "" {
			refusal.Message = resp.Status
		}
		return Status{}, fmt.Errorf("%w (%s); is it Holdfast's?", ErrNoStatus, refusal.Message)
	}
	// The daemon's own fields stand beside lives and containers.
	var answer struct {
		Daemon
		Lives      []Life      `json:"lives"`
		Containers []Container `json:"containers"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return Status{}, fmt.Errorf("%w that can be understood: %w", ErrNoStatus, err)
	}
	return Status{Daemon: &answer.Daemon, Lives: answer.Lives, Containers: answer.Containers}, nil
}
