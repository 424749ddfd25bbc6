// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"syscall"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// giveBack releases what a life used of the host: network, mounts and the volumes'
// mounts. It is idempotent. What fails is logged, and the next start or restore,
// which finds it by its name, does it again.
func (h *hostEffects) giveBack(id string, sandbox network.Sandbox, mounts []mountPoint) {
	if h.observes.Load() {
		return // the shim releases what it owns, and the next daemon the rest
	}
	ctx := context.Background()
	if sandbox.ID != "" {
		sandbox.Joined = h.index.joinedBy(id)
		if err := h.networks.Release(ctx, sandbox); err != nil {
			h.log.Error("the container's network could not be released", "container", id[:12], "error", err)
		}
	}
	if err := h.mounter.unmount(id); err != nil {
		h.log.Error("the container's root file system or other mounts could not be unmounted", "container", id[:12], "error", err)
	}
	for _, m := range mounts {
		if m.volume() {
			if err := h.volumes.Unmount(m.Name, id); err != nil {
				h.log.Error("a volume could not be unmounted", "container", id[:12], "volume", m.Name, "error", err)
			}
		}
	}
}

// killUnshimmed deletes the container in the OCI runtime, kills its processes and
// removes its cgroups. It is idempotent. A command without a daemon leaves that to the next
// daemon.
func (h *hostEffects) killUnshimmed(id string) error {
	if h.observes.Load() {
		return nil
	}
	a, err := h.index.find(id)
	if err != nil {
		return nil
	}
	return h.runtimes.delete(a.view.Load().spec)
}

// stopShim kills the container's process and ends its shim. It returns when the shim
// is gone and the container does not run.
func (h *hostEffects) stopShim(shim Shim, spec container.Spec) error {
	ctx := context.Background()
	_, err := shim.Stop(ctx, proto.Stop{Signal: int(syscall.SIGKILL)})
	if errdefs.IsConflict(err) {
		err = shim.Shutdown(ctx) // the container was never started
	}
	if err != nil && !errdefs.IsUnavailable(err) {
		return err
	}
	<-shim.Done()
	if err != nil {
		// The shim had exited, or it was killed and its container runs on.
		return h.killUnshimmed(spec.ID)
	}
	return nil
}
