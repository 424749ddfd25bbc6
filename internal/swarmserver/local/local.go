// SPDX-License-Identifier: Apache-2.0

// Package local finds containers on this host, mostly those of tasks, and observes them at their
// shims. It reads the daemon's files and needs no daemon, so that the end of a task is
// known at once, with its code, while no daemon lives. It changes nothing but what a
// shim is asked for.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/container"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// Host is where a daemon's files are.
type Host struct{ DataRoot, ExecRoot string }

func (h Host) containers() string { return filepath.Join(h.DataRoot, "containers") }

// read returns the spec of a container. ErrNotFound: there is no such container.
func (h Host) read(id string) (*container.Spec, error) {
	text, err := os.ReadFile(filepath.Join(h.containers(), id, "spec.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdefs.ErrNotFound.WithMessage("the container " + id + " was removed")
	} else if err != nil {
		return nil, err
	}
	var spec container.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("the record of container %s: %w", id, err)
	}
	return &spec, nil
}

// All returns the containers of tasks. A record that can't be read is left out, and
// reported as well: it is not known whose it is.
func (h Host) All() (all []*Container, err error) {
	dirs, err := os.ReadDir(h.containers())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var unread []error
	for _, d := range dirs {
		spec, err := h.read(d.Name())
		switch {
		case errdefs.IsNotFound(err): // it is being created or removed
		case err != nil:
			unread = append(unread, err)
		case spec.Task != "" && spec.Desired != container.DesiredRemoved:
			all = append(all, &Container{host: h, ID: spec.ID, Task: spec.Task, Name: spec.Name})
		}
	}
	return all, errors.Join(unread...)
}

// Find returns the container of a task. ErrNotFound: there is none.
func (h Host) Find(task string) (*Container, error) {
	all, err := h.All()
	for _, c := range all {
		if c.Task == task {
			return c, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, errdefs.ErrNotFound.WithMessage("there is no container of task " + task)
}

// Plain returns a container by its ID. ErrNotFound: there is none, or it is about to be
// removed.
func (h Host) Plain(id string) (*Container, error) {
	spec, err := h.read(id)
	if err != nil {
		return nil, err
	}
	if spec.Desired == container.DesiredRemoved {
		return nil, errdefs.ErrNotFound.WithMessage("the container " + id + " is being removed")
	}
	return &Container{host: h, ID: spec.ID, Task: spec.Task, Name: spec.Name}, nil
}

// Container is a container of this host. Task is empty if it is no task's.
type Container struct {
	host           Host
	ID, Task, Name string
}

// Asks reports whether the container asks for an address on one of its networks, and
// under which other names it wants to be found there.
func (c *Container) Asks(address netip.Addr) (aliases []string, asks bool, err error) {
	spec, err := c.host.read(c.ID)
	if err != nil {
		return nil, false, err
	}
	var req struct {
		Networking network.NetworkingConfig
	}
	if err := json.Unmarshal(spec.API, &req); err != nil {
		return nil, false, fmt.Errorf("the record of container %s: %w", c.ID, err)
	}
	for _, es := range req.Networking.EndpointsConfig {
		if es != nil && es.IPAMConfig != nil && es.IPAMConfig.IPv4Address == address {
			return es.Aliases, true, nil
		}
	}
	return nil, false, nil
}

// Network returns the file of the container's network namespace, or "" if it has none of
// its own or has not started, and the names of its interfaces by network.
func (c *Container) Network() (netns string, interfaces map[string]string) {
	spec, err := c.host.read(c.ID)
	if err != nil {
		return "", nil
	}
	var sandbox struct {
		Netns     string `json:"netns"`
		Shared    bool   `json:"shared"`
		Endpoints []struct {
			NetworkID string `json:"networkID"`
			Name      string `json:"name"`
		} `json:"endpoints"`
	}
	if json.Unmarshal(spec.Sandbox, &sandbox) != nil || sandbox.Shared {
		return "", nil
	}
	interfaces = map[string]string{}
	for _, e := range sandbox.Endpoints {
		interfaces[e.NetworkID] = e.Name
	}
	return sandbox.Netns, interfaces
}

// State is what is known of a container.
type State struct {
	// Started: its process was started, or it was tried.
	Started  bool
	Running  bool
	Exited   bool
	Pid      int
	ExitCode int
	// Error says why the container could not be started, or how it was lost.
	Error string
	// Health is the state of its health check, or empty if it has none.
	Health string
	OOM    bool
}

func of(st proto.State) State {
	s := State{
		Started: true, Pid: st.Pid, ExitCode: st.ExitCode, Error: st.Error, OOM: st.OOMKilled,
		Running: st.Status == proto.StatusRunning || st.Status == proto.StatusPaused || st.Status == proto.StatusRestarting,
		Exited:  st.Status == proto.StatusExited || st.Status == proto.StatusRemoved,
	}
	if st.Status == proto.StatusCreated {
		s.Started = false
	}
	if st.Health != nil {
		s.Health = st.Health.Status
	}
	return s
}

func (c *Container) runDir(spec *container.Spec) string {
	root := spec.ExecRoot
	if root == "" {
		root = c.host.ExecRoot
	}
	return filepath.Join(root, "shim", c.ID)
}

// recorded returns the end of the present life, if it is on record.
func (c *Container) recorded(spec *container.Spec) (State, bool) {
	if f := spec.Failure; f != nil {
		return State{Started: true, Exited: true, ExitCode: f.ExitCode, Error: f.Error}, true
	}
	if spec.Life == 0 {
		return State{}, false
	}
	st, err := client.ReadExit(filepath.Join(c.host.containers(), c.ID))
	if err != nil || st.Life != spec.Life {
		return State{}, false
	}
	if s := of(st); s.Exited {
		return s, true
	}
	return State{}, false
}

// State returns what is known of the container now. ErrNotFound: it was removed.
func (c *Container) State() (State, error) {
	spec, err := c.host.read(c.ID)
	if err != nil {
		return State{}, err
	}
	if s, ok := c.recorded(spec); ok {
		return s, nil
	}
	if spec.Life == 0 {
		return State{}, nil
	}
	st, err := client.ReadState(c.runDir(spec))
	if err != nil || st.Life != spec.Life {
		return State{Started: true}, nil // it is being started, or its end is not recorded yet
	}
	return of(st), nil
}

// Where a container can't be observed, it is looked at again after this time. Its shim
// may be dead until the daemon starts another, and its end is recorded by whoever
// finds it.
const again = 500 * time.Millisecond

// Follow calls see with the state of the container and with each later one, until see
// returns true. States may be left out, but not the last one. Errors: ErrNotFound if
// the container was removed, and the context's. An unreachable shim is no error: the
// state is unknown for that time.
func (c *Container) Follow(ctx context.Context, see func(State) bool) error {
	for {
		done, err := c.follow(ctx, see)
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(again):
		}
	}
}

func (c *Container) follow(ctx context.Context, see func(State) bool) (done bool, err error) {
	spec, err := c.host.read(c.ID)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return true, err
		}
		return false, nil
	}
	if s, ok := c.recorded(spec); ok {
		return see(s), nil
	}
	if spec.Life == 0 {
		return false, nil
	}
	shim, err := client.DialGuest(ctx, c.runDir(spec))
	if err != nil {
		return false, ctx.Err()
	}
	defer shim.Close()
	return c.observe(ctx, shim, spec.Life, see)
}

// observe calls see with the states that a shim reports, until it ends.
func (c *Container) observe(ctx context.Context, shim *client.Shim, life uint64, see func(State) bool) (done bool, err error) {
	// The shim's last event tells the end even if the container is removed at once.
	states := make(chan State, 64)
	ended := make(chan struct{})
	defer close(ended)
	err = shim.Subscribe(ctx, 0, func(e proto.Event) {
		if e.State.Life != life {
			return
		}
		select {
		case states <- of(e.State):
		case <-ended:
		}
	})
	if err != nil {
		return false, ctx.Err()
	}
	if st, err := shim.State(ctx); err == nil && st.Life == life && see(of(st)) {
		return true, nil
	}
	for {
		select {
		case s := <-states:
			if see(s) {
				return true, nil
			}
		case <-shim.Done():
			for {
				select {
				case s := <-states:
					if see(s) {
						return true, nil
					}
					continue
				default:
				}
				return false, nil
			}
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}

// Stop asks the shim to stop the container, with the signal and the time-out that it
// was created with, and waits. ErrNotFound: there is no shim that could.
func (c *Container) Stop(ctx context.Context) error {
	return c.ask(ctx, func(s *client.Shim) error {
		_, err := s.Stop(ctx, proto.Stop{Default: true, User: true})
		return err
	})
}

// Kill asks the shim to kill the container. ErrNotFound: there is no shim that could.
func (c *Container) Kill(ctx context.Context) error {
	const sigkill = 9
	return c.ask(ctx, func(s *client.Shim) error {
		return s.Kill(ctx, proto.Kill{Signal: sigkill, Manual: true, User: true})
	})
}

func (c *Container) ask(ctx context.Context, request func(*client.Shim) error) error {
	spec, err := c.host.read(c.ID)
	if err != nil {
		return err
	}
	shim, err := client.DialGuest(ctx, c.runDir(spec))
	if err != nil {
		return err
	}
	defer shim.Close()
	return request(shim)
}
