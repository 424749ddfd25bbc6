// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/api"
	"holdfast/internal/config"
	"holdfast/internal/engine"
	"holdfast/internal/engine/oci"
	"holdfast/internal/event"
	"holdfast/internal/handoff"
	"holdfast/internal/network"
	"holdfast/internal/store"
	"holdfast/internal/version"
)

// observerFD is the descriptor of an observer's connection to the command that
// started it: a socket of type SOCK_SEQPACKET. The observer's first message is
// a single byte if it is ready, and otherwise gives the reason. Every message
// to the observer carries one end of a socket pair, which is a connection to
// the API. When the socket is closed the observer exits.
const observerFD = 3

// First bytes of the observer's first message.
const (
	observerReady   = '+'
	observerUnknown = '?' // no daemon of Holdfast served that socket: nothing to observe
	observerFailed  = '-' // a message follows
)

// observe serves the API to one command, from the files and the shims.
func observe(args []string) int {
	flags := flag.NewFlagSet("observe", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	socket := flags.String("socket", "", "path of the API's socket on which no daemon answers")
	execRoot := flags.String("exec-root", "", "the daemon's exec root; empty: found by the socket")
	if err := flags.Parse(args); err != nil || *socket == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "holdfastd observe can only be started by holdfast, when no daemon answers")
		return 125
	}
	control := os.NewFile(observerFD, "control")
	handler, err := composeObserver(*socket, *execRoot)
	if err != nil {
		word := append([]byte{observerFailed}, err.Error()...)
		if errdefs.IsNotFound(err) {
			word[0] = observerUnknown
		}
		_, _ = control.Write(word)
		return 1
	}
	if _, err := control.Write([]byte{observerReady}); err != nil {
		return 1 // the command has ended
	}
	server := &http.Server{
		Handler: handler, Protocols: new(http.Protocols),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	server.Protocols.SetHTTP1(true)
	// The command has ended, so no one can receive an error.
	_ = server.Serve(&handoff.PassedConns{Control: control})
	return 0
}

// composeObserver builds an engine that only observes, and the API on top of
// it.
func composeObserver(socket, execRoot string) (http.Handler, error) {
	roots, err := findRoots(socket, execRoot)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	files, err := store.OpenView(roots.DataRoot, roots.ExecRoot)
	if err != nil {
		return nil, err
	}
	lives, err := event.ReadLives(files.EventsDir())
	if err != nil {
		return nil, err
	}
	nets, err := network.Open(ctx, network.Options{Root: files.NetworksDir(), ExecRoot: roots.ExecRoot})
	if err != nil {
		return nil, err
	}
	// The log goes to the terminal of a user who runs another command, so it
	// contains only errors.
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	o := engine.NewObserver(engine.Deps{
		Store: files, Shims: guest{}, Networks: nets, Lives: lives,
		Host: oci.Probe(ctx), Log: log, Release: version.Version,
	}, func(since time.Time, match func(event.Message) bool) ([]event.Message, error) {
		return event.ReadHistory(files.EventsDir(), since, match)
	}, &engine.Config{Config: &config.Config{DataRoot: roots.DataRoot, ExecRoot: roots.ExecRoot, LiveRestore: true}})
	if err := o.Observe(ctx); err != nil {
		return nil, err
	}
	return api.New(api.Options{
		Containers: o, Images: o, Volumes: o, Networks: o, System: o, Daemon: o,
		Server: fmt.Sprintf("Holdfast/%s (linux; no daemon)", version.Version),
	}), nil
}

// findRoots finds the roots of the daemon that served a socket. It looks in the
// directory of the socket, then in the roots of this host's configuration.
// ErrNotFound: no daemon of Holdfast has served it.
func findRoots(socket, execRoot string) (store.Roots, error) {
	socket, err := filepath.Abs(socket)
	if err != nil {
		return store.Roots{}, err
	}
	serves := func(sockets []string) bool {
		return slices.ContainsFunc(sockets, func(s string) bool { return filepath.Clean(s) == socket })
	}
	if execRoot != "" {
		return store.ReadRoots(execRoot)
	}
	roots, err := store.ReadRoots(filepath.Dir(socket))
	if err == nil && serves(roots.Sockets) || err != nil && !errdefs.IsNotFound(err) {
		return roots, err
	}
	flags, err := config.ParseFlags(nil)
	if err != nil {
		return store.Roots{}, err
	}
	cfg, err := config.Load(flags, os.ReadFile)
	if err != nil {
		return store.Roots{}, err
	}
	roots, err = store.ReadRoots(cfg.ExecRoot)
	if err == nil && serves(roots.Sockets) || err != nil && !errdefs.IsNotFound(err) {
		return roots, err
	}
	// After a reboot the exec root is empty, but the data root is not.
	if serves(unixPaths(cfg.Addresses())) {
		if _, err := os.Stat(filepath.Join(cfg.DataRoot, "containers")); err == nil {
			return store.Roots{DataRoot: cfg.DataRoot, ExecRoot: cfg.ExecRoot}, nil
		}
	}
	return store.Roots{}, fmt.Errorf("no daemon of Holdfast has served %s: %w", socket, errdefs.ErrNotFound)
}

// sayRoots records where the roots are, for observers.
func (d *daemon) sayRoots() error {
	var shown []string
	for _, l := range d.listeners.All() {
		shown = append(shown, l.Shown())
	}
	return store.WriteRoots(store.Roots{
		DataRoot: d.cfg.DataRoot, ExecRoot: d.cfg.ExecRoot, Sockets: unixPaths(shown), Release: version.Version,
	})
}

// share gives the group of the API's socket access to the files that an
// observer needs. It closes the roots to all other users, except that a socket
// in the exec root may be open to them.
func (d *daemon) share() error {
	var paths []string
	for _, l := range d.listeners.All() {
		if path, ok := strings.CutPrefix(l.Shown(), "unix://"); ok {
			paths = append(paths, path)
		}
	}
	return store.Share(d.cfg.DataRoot, d.cfg.ExecRoot, accessOf(paths, d.cfg.ExecRoot))
}

// accessOf derives from the API's sockets which group gets access to the
// containers' files, and whether other users must be able to pass through the
// exec root.
func accessOf(sockets []string, execRoot string) (a store.Access) {
	const groupMayConnect, othersMayConnect = 0o020, 0o002
	for _, path := range sockets {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue
		}
		group := int(st.Gid)
		if group != 0 && st.Mode&groupMayConnect != 0 && a.Group == 0 {
			a.Group = group
		}
		foreign := group != 0 && group != a.Group && st.Mode&groupMayConnect != 0
		if (st.Mode&othersMayConnect != 0 || foreign) && below(path, execRoot) {
			a.Everyone = true
		}
	}
	return a
}

// below reports whether a path is a directory or below it.
func below(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// unixPaths returns the paths of the addresses that are Unix sockets.
func unixPaths(addresses []string) []string {
	paths := []string{}
	for _, a := range addresses {
		if path, ok := strings.CutPrefix(a, "unix://"); ok {
			if abs, err := filepath.Abs(path); err == nil {
				paths = append(paths, abs)
			}
		}
	}
	return paths
}
