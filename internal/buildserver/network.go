// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	resources "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/util/network"
	"github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/build/stores"
)

// bridged gives each RUN step a network namespace of its own on a network of the
// daemon.
type bridged struct {
	remote *stores.Client
	// ending is closed when the process is about to end.
	ending <-chan struct{}
}

func (b bridged) New(ctx context.Context, _ string, _ network.NamespaceOptions) (network.Namespace, error) {
	var id [32]byte
	_, _ = rand.Read(id[:]) // it never fails
	n := &namespaced{bridged: b, id: hex.EncodeToString(id[:])}
	var err error
	if n.path, err = b.remote.Connect(ctx, n.id, networkOf(ctx)); err != nil {
		return nil, err
	}
	return n, nil
}

func (b bridged) Close() error { return nil }

type namespaced struct {
	bridged
	id, path string
}

// lastCall bounds the wait for a daemon when the process is about to end. The next
// daemon removes what is left.
const lastCall = 5 * time.Second

func (n *namespaced) Set(s *specs.Spec) error {
	return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: n.path})(nil, nil, nil, s)
}

// Close removes the namespace, also if the build was cancelled.
func (n *namespaced) Close() error {
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

// networkOf returns the daemon's network that a step is on.
func networkOf(context.Context) string { return "" }
