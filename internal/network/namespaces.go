// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"

	"holdfast/internal/network/bridge"
)

// namespaces has descriptors of network namespaces whose interfaces must be
// removed before the kernel removes the namespace. A descriptor is needed because
// the shim unmounts the namespace's file when the container ends. If a container
// ends while no daemon runs, the kernel has removed its namespace by the time the
// next daemon starts, so no descriptor is needed.
type namespaces struct {
	opts *parsed
	log  *slog.Logger

	mu    sync.Mutex
	files map[string]*os.File // by container
}

// open opens a descriptor of a sandbox's namespace if it will be needed.
func (n *namespaces) open(s Sandbox) {
	if s.Shared || !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Parent != nil }) || !bridge.IsNamespace(s.Netns) {
		return
	}
	f, err := os.Open(s.Netns)
	if err != nil {
		n.log.Warn("no descriptor of the network namespace could be opened: the container's next start may find its hardware address in use", "container", s.Container, "error", err)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.files == nil {
		n.files = map[string]*os.File{}
	}
	if old := n.files[s.Container]; old != nil {
		old.Close()
	}
	n.files[s.Container] = f
}

// take returns the descriptor of a container's namespace, or nil if there is
// none. The caller closes it.
func (n *namespaces) take(container string) *os.File {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.files[container]
	delete(n.files, container)
	return f
}

// removeInterfaces removes those interfaces of a sandbox that must not wait for
// the kernel to remove the namespace, which happens some time after the last
// process in it has ended. Until then the parent of a macvlan interface refuses a
// second one with the same hardware address, so a restart would fail. And while
// another container is in the namespace, two interfaces would use the address.
func (n *namespaces) removeInterfaces(s Sandbox) error {
	path := s.Netns
	if f := n.take(s.Container); f != nil {
		defer f.Close()
		path = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	}
	for _, e := range s.Endpoints {
		switch {
		case e.Parent != nil && bridge.IsNamespace(path):
			if err := bridge.RemoveInside(path, e.Name); err != nil {
				return err
			}
		case e.Overlay:
			if err := n.opts.overlays().RemoveEndpoint(e.NetworkID, e.ID); err != nil {
				return err
			}
		case e.HostName != "" && s.Joined:
			if err := bridge.RemoveInterface(e.HostName); err != nil {
				return err
			}
		}
	}
	return nil
}

// close closes all descriptors.
func (n *namespaces) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.files {
		f.Close()
	}
	clear(n.files)
}
