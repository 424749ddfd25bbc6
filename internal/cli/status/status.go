// SPDX-License-Identifier: Apache-2.0

// Package status is "holdfast daemon status": it shows the daemon, its earlier
// lives, and each container's shim. It asks the daemon, or reads the shims' own
// files if no daemon answers. It changes nothing.
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

// Path is the API's path of the Status.
const Path = "/holdfast/v1/status"

// Status is the daemon's answer, or what was found without it.
type Status struct {
	// Daemon is nil if no daemon answers; Error is then the reason.
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

// Life is one run of a daemon on this data root. The last one is the present
// one.
type Life struct {
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"` // zero if unknown or still running
	How     string    `json:"how,omitempty"`  // how it ended: clean, crash, …
	// ContainersStopped: it has stopped its containers before its end, and ended the
	// builds.
	ContainersStopped bool `json:"containersStopped,omitempty"`
}

// Container is one container and its shim.
type Container struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Status      string    `json:"status"`
	Pid         int       `json:"pid,omitempty"` // of its first process, while it runs
	Started     time.Time `json:"started,omitzero"`
	ShimPid     int       `json:"shimPid,omitempty"` // 0 if no shim is running
	ShimVersion string    `json:"shimVersion,omitempty"`
	// Lives is the number of the daemon's lives during which this run of the
	// container existed. 1 means only the present one, 0 means unknown.
	Lives int `json:"lives,omitempty"`
	// Note is the reason why the state could not be read.
	Note string `json:"note,omitempty"`
}

// ErrNoStatus is returned for a daemon whose answer is not a status.
var ErrNoStatus = errors.New("the daemon answers, but has no status")

// Fetch asks the daemon that dial connects to.
func Fetch(ctx context.Context, dial func(context.Context) (net.Conn, error)) (Status, error) {
	web := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	// The URL needs a host, but dial chooses the address.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://holdfast"+Path, nil)
	if err != nil {
		return Status{}, err
	}
	resp, err := web.Do(req)
	if err != nil {
		// Remove the artificial URL from the message.
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
	// The daemon's own fields are at the same level as lives and containers.
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
