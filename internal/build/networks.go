// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"holdfast/internal/build/stores"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/network/bridge"
)

// Sandboxes makes and removes networks of processes, as for containers.
type Sandboxes interface {
	Prepare(ctx context.Context, r network.Request) (network.Sandbox, []network.Reserved, error)
	Join(ctx context.Context, s network.Sandbox) error
	Publish(ctx context.Context, s network.Sandbox) error
	Release(ctx context.Context, s network.Sandbox) error
}

// networks makes the networks of RUN steps. Each has a record in its directory,
// written before anything is done in the kernel.
type networks struct {
	dir       string
	sandboxes Sandboxes
	mode      func(ctx context.Context, mode string) (string, error)
	names     func(view string, s network.Sandbox) ([]byte, error)
	log       *slog.Logger
	mu        sync.Mutex // held during a change
}

func newNetworks(o Options) *networks {
	return &networks{dir: filepath.Join(Dir(o.ExecRoot), netDir), sandboxes: o.Networks, mode: o.Mode, names: o.Names, log: o.Log}
}

var stepID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Files in the directory of a step's network.
const (
	recordFile = "sandbox.json"
	viewFile   = "names.json" // see package names
)

func (n *networks) read(id string) (s network.Sandbox, err error) {
	text, err := os.ReadFile(filepath.Join(n.dir, id, recordFile))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(text, &s)
}

// Connect makes the network namespace of a RUN step; see stores.Networks.
func (n *networks) Connect(ctx context.Context, id, name string) (_ string, err error) {
	if !stepID.MatchString(id) {
		return "", errs.Invalid("connect a build step: %q is not the ID of a step", id)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if s, err := n.read(id); err == nil {
		// An earlier call, or an earlier daemon, got as far as the record.
		return s.Netns, n.join(ctx, s)
	}
	dir := filepath.Join(n.dir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("connect a build step: %w", err)
	}
	if name, err = n.mode(ctx, name); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	s, reserved, err := n.sandboxes.Prepare(ctx, network.Request{ID: id, Name: "build step " + id[:12], Mode: name})
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	for _, r := range reserved {
		r.File.Close()
	}
	if !s.Shared { // with a container, which keeps its namespace
		s.Netns = filepath.Join(dir, "netns")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.release(context.WithoutCancel(ctx), id, s))
		}
	}()
	text, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	record := filepath.Join(dir, recordFile)
	if err := os.WriteFile(record+".new", text, 0o600); err != nil {
		return "", fmt.Errorf("connect a build step: %w", err)
	}
	if err := os.Rename(record+".new", record); err != nil {
		return "", fmt.Errorf("connect a build step: %w", err)
	}
	failpoint.Here("build.recorded")
	return s.Netns, n.join(ctx, s)
}

func (n *networks) join(ctx context.Context, s network.Sandbox) error {
	if err := n.sandboxes.Join(ctx, s); err != nil {
		return err
	}
	failpoint.Here("build.joined")
	err := n.sandboxes.Publish(ctx, s)
	failpoint.Here("build.published")
	return err
}

// Names writes the file of a step's name server; see stores.Networks.
func (n *networks) Names(_ context.Context, id string) (stores.Names, error) {
	if !stepID.MatchString(id) {
		return stores.Names{}, errs.Invalid("names for a build step: %q is not the ID of a step", id)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s, err := n.read(id)
	if err != nil {
		return stores.Names{}, fmt.Errorf("names for build step %s: %w", id[:12], err)
	}
	if !s.Named() {
		return stores.Names{}, nil
	}
	view := filepath.Join(n.dir, id, viewFile)
	resolv, err := n.names(view, s)
	if err != nil {
		return stores.Names{}, err
	}
	return stores.Names{View: view, Resolv: resolv}, nil
}

// ListenNames opens the sockets of the name server of a network namespace: one for
// UDP, one for TCP. The caller closes them.
func ListenNames(netns string) (udp, tcp *os.File, err error) { return bridge.ListenNames(netns) }

// Disconnect removes the network namespace of a RUN step; see stores.Networks.
func (n *networks) Disconnect(ctx context.Context, id string) error {
	if !stepID.MatchString(id) {
		return errs.Invalid("disconnect a build step: %q is not the ID of a step", id)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.disconnect(ctx, id)
}

func (n *networks) disconnect(ctx context.Context, id string) error {
	s, err := n.read(id)
	if errors.Is(err, os.ErrNotExist) {
		return os.RemoveAll(filepath.Join(n.dir, id))
	}
	if err != nil {
		return fmt.Errorf("disconnect build step %s: %w", id[:12], err)
	}
	return n.release(ctx, id, s)
}

func (n *networks) release(ctx context.Context, id string, s network.Sandbox) error {
	if err := n.sandboxes.Release(ctx, s); err != nil {
		return err
	}
	failpoint.Here("build.released")
	if err := os.RemoveAll(filepath.Join(n.dir, id)); err != nil {
		return fmt.Errorf("disconnect build step %s: %w", id[:12], err)
	}
	return nil
}

// sweep removes the networks of steps whose process is dead.
func (n *networks) sweep(ctx context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range n.steps() {
		if err := n.disconnect(ctx, id); err != nil {
			n.log.Warn("the network of a build step that was killed can't be removed", "step", id, "error", err)
		}
	}
}

func (n *networks) steps() (ids []string) {
	entries, _ := os.ReadDir(n.dir) // without the directory there are none
	for _, e := range entries {
		if stepID.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// Steps returns the networks of the steps of a living build process, by ID, for
// network.Manager.Restore.
func (b *Builder) Steps() map[string]network.Sandbox {
	all := map[string]network.Sandbox{}
	if _, err := os.Stat(b.networks.dir); err != nil {
		return all
	}
	if alive, err := b.process.Alive(); err != nil || !alive {
		return all
	}
	for _, id := range b.networks.steps() {
		if s, err := b.networks.read(id); err == nil {
			all[id] = s
		}
	}
	return all
}
