// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	resources "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/build"
	"holdfast/internal/build/stores"
	"holdfast/internal/errs"
	"holdfast/internal/shim/names"
)

// bridged gives each RUN step a network namespace of its own on a network of the
// daemon.
type bridged struct {
	remote *stores.Client
	// ending is closed when the process is about to end.
	ending <-chan struct{}
}

func (b bridged) New(ctx context.Context, _ string, _ network.NamespaceOptions) (_ network.Namespace, err error) {
	var id [32]byte
	_, _ = rand.Read(id[:]) // it never fails
	n := &namespaced{bridged: b, id: hex.EncodeToString(id[:])}
	name := networkOf(ctx)
	if n.path, err = b.remote.Connect(ctx, n.id, name); err != nil {
		return nil, err
	}
	if name == "" {
		return n, nil
	}
	if err := n.serveNames(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (b bridged) Close() error { return nil }

type namespaced struct {
	bridged
	id, path string
	names    *names.Server // nil if the network has none
	resolv   string        // path of the step's resolv.conf, "" for BuildKit's own
}

// serveNames makes a name server in the namespace, as containers have on the same
// network.
func (n *namespaced) serveNames(ctx context.Context) error {
	with, err := n.remote.Names(ctx, n.id)
	if err != nil || with.View == "" {
		return err
	}
	udp, tcp, err := build.ListenNames(n.path)
	if err != nil {
		return err
	}
	n.names = names.New(with.View, udp, tcp)
	go n.names.Serve()
	n.resolv = filepath.Join(filepath.Dir(with.View), "resolv.conf")
	return os.WriteFile(n.resolv, with.Resolv, 0o644)
}

// lastCall bounds the wait for a daemon when the process is about to end. The next
// daemon removes what is left.
const lastCall = 5 * time.Second

func (n *namespaced) Set(s *specs.Spec) error {
	if n.resolv != "" {
		for i := range s.Mounts {
			if s.Mounts[i].Destination == "/etc/resolv.conf" {
				s.Mounts[i].Source = n.resolv
			}
		}
	}
	return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: n.path})(nil, nil, nil, s)
}

// Close removes the namespace, also if the build was cancelled.
func (n *namespaced) Close() error {
	if n.names != nil {
		n.names.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-n.ending:
			timer := time.NewTimer(lastCall)
			defer timer.Stop()
			select {
			case <-timer.C:
				cancel()
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	}()
	return n.remote.Disconnect(ctx, n.id)
}

// Sample reports nothing: what a step sends and receives is not measured.
func (n *namespaced) Sample() (*resources.NetworkSample, error) { return nil, nil }

// confined lets a step have the seccomp profile that containers have. BuildKit's
// executor knows only the built-in one. It lets the network change the step's
// specification, last of all.
type confined struct{ network.Provider }

func (c confined) New(ctx context.Context, hostname string, o network.NamespaceOptions) (network.Namespace, error) {
	n, err := c.Provider.New(ctx, hostname, o)
	if err != nil {
		return nil, err
	}
	return filtered{n, configOf(ctx).Seccomp}, nil
}

type filtered struct {
	network.Namespace
	profile string
}

func (f filtered) Set(s *specs.Spec) error {
	if err := f.Namespace.Set(s); err != nil {
		return err
	}
	// A step without a filter is one with security=insecure, or the kernel has none.
	if f.profile == "" || s.Linux.Seccomp == nil {
		return nil
	}
	if f.profile == "unconfined" {
		s.Linux.Seccomp = nil
		return nil
	}
	var err error
	if s.Linux.Seccomp, err = seccomp.LoadProfile(f.profile, s); err != nil {
		return errs.Invalid("seccomp profile of the daemon: %v", err)
	}
	return nil
}
