// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/swarm"

	"holdfast/internal/beside"
	"holdfast/internal/errs"
)

// Options are the options of a Node.
type Options struct {
	// Binary is the path of holdfast-swarm.
	Binary   string
	DataRoot string
	ExecRoot string
	// Release is the daemon's own. A process of another release is replaced.
	Release string
	Log     *slog.Logger
	// Started, if not nil, is called with the pid of each process that was started.
	Started func(pid int)
	Settings
}

// Settings are those of the daemon that a process gets when it is started. A process
// with others is replaced.
type Settings struct {
	// AdvertiseAddr is the address or interface at which other nodes reach this one
	// unless a request names another. Empty chooses the host's only address.
	AdvertiseAddr string `json:"advertiseAddr,omitempty"`
	// HeartbeatTick and ElectionTick are those of raft, in seconds. 0 is the default.
	HeartbeatTick int `json:"heartbeatTick,omitempty"`
	ElectionTick  int `json:"electionTick,omitempty"`
}

// String is the form in which a process gets the settings.
func (s Settings) String() string {
	text, _ := json.Marshal(s) // never fails for this type
	return string(text)
}

const (
	// infoTimeout bounds how long GET /info waits for the process.
	infoTimeout = 20 * time.Second
	// closeTimeout bounds how long Close waits for requests that have begun.
	closeTimeout = 10 * time.Second
	// firstRetry and lastRetry bound the backoff between starts of a process that
	// ends by itself.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
	// lasting is how long a process must have run for the backoff to begin anew.
	lasting = 10 * time.Second
)

// Node is the daemon's side of the swarm. Its methods may be called by several
// goroutines.
type Node struct {
	o       Options
	process *beside.Process
	handler http.Handler // of the private socket; set before Resume

	// life ends when this daemon stops working with the process.
	life context.Context
	end  context.CancelFunc

	mu       sync.Mutex // held while a process is started or stopped
	server   *http.Server
	watching bool
	closed   bool
}

// New makes a Node. It starts nothing.
func New(o Options) *Node {
	n := &Node{o: o}
	n.life, n.end = context.WithCancel(context.Background())
	n.process = &beside.Process{
		Name: "the swarm process", Binary: o.Binary, Args: []string{"--data-root", o.DataRoot, "--exec-root", o.ExecRoot, "--settings", o.Settings.String()},
		Dir: Dir(o.ExecRoot), Log: "swarm.log", Started: o.Started,
	}
	return n
}

// Serve sets what the process may ask of the daemon. It is called before Resume.
func (n *Node) Serve(h http.Handler) { n.handler = h }

// Member reports whether the host is in a swarm, or about to join one.
func (n *Node) Member() bool {
	_, err := os.Stat(filepath.Join(StateDir(n.o.DataRoot), StateFile))
	return err == nil
}

// Header is the API's header Swarm.
func (n *Node) Header() string {
	return ReadStatus(n.o.ExecRoot).Node
}

// Resume is called when the daemon has restored everything. If the host is in a swarm,
// it works with the process that an earlier daemon has started, or starts one. The
// containers of tasks run in any case. Otherwise what a process may have left of a swarm
// is removed.
func (n *Node) Resume(ctx context.Context) error {
	if !n.Member() {
		n.tidy()
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if alive, err := n.process.Alive(); err == nil && alive {
		running := ReadStatus(n.o.ExecRoot)
		if running.Release != n.o.Release || running.Settings != n.o.Settings {
			n.o.Log.Info("replacing the swarm process by one of this release, with the present settings", "was", running.Release, "is", n.o.Release)
			n.process.Stop(beside.StopAll)
		}
	}
	err := n.ready(ctx)
	if err != nil {
		n.watch() // it tries again
	}
	return err
}

// tidy removes what a process has left of a swarm that the host is no longer in.
func (n *Node) tidy() {
	if _, err := os.Stat(filepath.Join(StateDir(n.o.DataRoot), StateFile)); !errors.Is(err, os.ErrNotExist) {
		return // whether the host is in a swarm is unknown
	}
	if err := UnmountSecrets(n.o.ExecRoot); err != nil {
		n.o.Log.Error("the secrets of a swarm that this host has left can't be removed", "error", err)
	}
}

// Ready makes sure that a process runs and can use the daemon. Errors:
// ErrNotImplemented if it is not installed, ErrUnavailable.
func (n *Node) Ready(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready(ctx)
}

func (n *Node) ready(ctx context.Context) error {
	if n.closed {
		return errs.Unavailable("the daemon is being replaced: ask again")
	}
	if !n.process.Installed() {
		return errs.NotImplemented("swarm mode needs the program holdfast-swarm, which is not at %s: install it there", n.o.Binary)
	}
	alive, err := n.process.Alive()
	if err != nil {
		return err
	}
	if err := n.lend(); err != nil {
		return err
	}
	if !alive {
		if err := n.process.Start(ctx); err != nil {
			return err
		}
	}
	n.watch()
	return nil
}

// lend opens the private socket. The caller holds mu.
func (n *Node) lend() error {
	if n.server != nil {
		return nil
	}
	path := EnginePath(n.o.ExecRoot)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("swarm: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("swarm: serve the process: %w", err)
	}
	l.SetUnlinkOnClose(false) // the next daemon may have made its own by then
	n.server = &http.Server{
		Handler: n.handler, BaseContext: func(net.Listener) context.Context { return n.life },
		ErrorLog: slog.NewLogLogger(n.o.Log.Handler(), slog.LevelDebug),
	}
	go func(s *http.Server) {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.o.Log.Error("the swarm process can no longer use the daemon", "error", err)
		}
	}(n.server)
	return nil
}

// watch starts the process again if it ends while the host is in a swarm. The caller
// holds mu.
func (n *Node) watch() {
	if n.watching {
		return
	}
	n.watching = true
	go func() {
		defer func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.watching = false
		}()
		pause := firstRetry
		for {
			began := time.Now()
			n.process.Watch(n.life)
			if n.life.Err() != nil || !n.Member() {
				return
			}
			if time.Since(began) > lasting {
				pause = firstRetry
			}
			n.o.Log.Warn("the swarm process has ended: it is started again, and tasks run on meanwhile", "in", pause)
			select {
			case <-n.life.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, lastRetry)
			if err := n.Ready(n.life); err != nil {
				n.o.Log.Error("the swarm process can't be started", "error", err)
			}
		}
	}()
}

// Give passes a client to the process, with the headers of every answer. If the
// process has just ended, another is started.
func (n *Node) Give(ctx context.Context, client beside.Client, headers map[string][]string) error {
	var err error
	for range 3 {
		if err = n.Ready(ctx); err != nil {
			return err
		}
		if err = n.process.Pass(client, headers); !errors.Is(err, beside.ErrGone) {
			return err
		}
	}
	return errs.Unavailable("pass a client to the swarm process: %v", err)
}

// Ask makes a request of the daemon itself. The caller closes the body of the answer.
func (n *Node) Ask(ctx context.Context, r *http.Request) (*http.Response, error) {
	return n.process.Ask(ctx, r, func(c beside.Client) error { return n.Give(ctx, c, nil) })
}

// Info is the swarm section of GET /info. If the process can't be asked, Error says
// why: an operator has to see the rest of the host's state.
func (n *Node) Info(ctx context.Context) swarm.Info {
	if !n.Member() {
		return swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}
	}
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	var info swarm.Info
	err := n.process.Get(ctx, InfoPath, func(c beside.Client) error { return n.Give(ctx, c, nil) }, &info)
	if err != nil {
		return swarm.Info{LocalNodeState: swarm.LocalNodeStateError, Error: err.Error()}
	}
	return info
}

// Attach asks the process for a container's address on a network of the swarm; see
// engine.Swarm.
func (n *Node) Attach(ctx context.Context, container, network string, want netip.Addr) (name string, address netip.Addr, internal bool, err error) {
	text, err := json.Marshal(AttachRequest{container, network, want})
	if err != nil {
		return "", netip.Addr{}, false, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://daemon"+AttachPath, bytes.NewReader(text))
	if err != nil {
		return "", netip.Addr{}, false, err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := n.Ask(ctx, r)
	if err != nil {
		return "", netip.Addr{}, false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var refused common.ErrorResponse
		if err := json.NewDecoder(resp.Body).Decode(&refused); err != nil {
			refused.Message = resp.Status
		}
		kind := errhttp.ToNative(resp.StatusCode)
		return "", netip.Addr{}, false, fmt.Errorf("could not attach to network %s: %w", network, refusal{refused.Message, kind})
	}
	var a Attachment
	err = json.NewDecoder(resp.Body).Decode(&a)
	return a.Network, a.Address, a.Internal, err
}

// refusal is the process's answer, with its own text and a kind.
type refusal struct {
	text string
	kind error
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.kind }

// Stop ends the process because the containers of its tasks are about to be stopped
// with the daemon. The node's state stays, and the next daemon starts the process
// again.
func (n *Node) Stop() {
	n.end() // so that it is not started again
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.process.Stop(beside.StopAll)
}

// Close stops working with the process, which waits for the next daemon.
func (n *Node) Close() error {
	n.end()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	if n.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := n.server.Shutdown(ctx)
	if err != nil {
		err = n.server.Close()
	}
	n.server = nil
	return err
}
