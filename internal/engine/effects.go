// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"log/slog"
	"syscall"

	"holdfast/internal/container"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// effects are what an actor does to the host for its container. All of them take
// time, so they run outside the loop. They are idempotent, and what they make is
// named after the container's ID: a restore finishes what a crash interrupts.
type effects interface {
	// launch performs a start, and rolls it back if a step fails. It posts to the
	// actor what the loop has to know.
	launch(ctx context.Context, a *actor, o launchOrder) error
	// spawnSuccessor spawns the shim that takes over from one that was killed. dial
	// connects to a shim that runs.
	spawnSuccessor(a *actor, rec proto.State) (Shim, error)
	dial(id string) (Shim, error)
	// updateFiles updates the files of a running container after a change of its
	// networks.
	updateFiles(spec container.Spec, req request, sandbox network.Sandbox) error
	// readyToRestart mounts the root file system of a container between two runs again,
	// if another program has unmounted it. It is called in the loop: until the end of
	// this life, which the loop handles, nothing else of ours unmounts it.
	readyToRestart(state container.State, spec container.Spec)
	// serveNames gives a shim the sockets of its container's name server.
	serveNames(ctx context.Context, shim Shim, id string, sandbox network.Sandbox) error

	// giveBack releases what a life used of the host.
	giveBack(id string, sandbox network.Sandbox, mounts []mountPoint)
	killing
	deletion
}

// killing ends a container's process. stopShim kills the process and ends its shim.
// killUnshimmed kills the process of a container without a shim, and deletes the container
// in the OCI runtime. signalUnshimmed sends the process a signal.
type killing interface {
	stopShim(shim Shim, spec container.Spec) error
	killUnshimmed(id string) error
	signalUnshimmed(spec container.Spec, rec proto.State, sig syscall.Signal) error
}

// deletion removes what belongs to a container. deleteContainer leaves the record,
// set aside; forget deletes it, and what the journal knows of the container's entries.
type deletion interface {
	deleteContainer(shim Shim, spec container.Spec, mounts []mountPoint, giveBack func()) error
	forget(id string)
}

// hostEffects implements effects with the engine's ports.
type hostEffects struct {
	*progress
	config   *settings
	store    Store
	shims    Shims
	images   Images
	networks Networks
	volumes  Volumes
	log      *slog.Logger
	release  string
	index    *index
	journal  *journal
	names    *nameService
	runtimes *runtimes
	mounter  *mounter
	files    *sandboxFiles
	bundler  *bundler
}

// newEffects returns the effects of an engine whose other parts exist.
func newEffects(e *Engine) *hostEffects {
	m := &mounter{e.store, e.images, e.volumes}
	f := &sandboxFiles{e.config, e.store, e.networks, e.index, e.names}
	return &hostEffects{
		progress: e.progress, config: e.config, store: e.store, shims: e.shims, images: e.images, networks: e.networks, volumes: e.volumes,
		log: e.log, release: e.release, index: e.index, journal: e.journal, names: e.names, runtimes: e.runtimes, mounter: m, files: f,
		bundler: &bundler{e.config, e.store, e.networks, e.host, e.index, e.runtimes, m, f},
	}
}

func (h *hostEffects) readyToRestart(state container.State, spec container.Spec) {
	if state != container.Restarting || h.observes.Load() {
		return
	}
	if err := h.mounter.remountRootfs(context.Background(), spec); err != nil {
		h.log.Error("the container's root file system was unmounted and can't be mounted again: its restarts fail", "container", spec.ID[:12], "error", err)
	}
}

func (h *hostEffects) updateFiles(spec container.Spec, req request, sandbox network.Sandbox) error {
	return h.files.update(spec, req, sandbox)
}

func (h *hostEffects) serveNames(ctx context.Context, shim Shim, id string, sandbox network.Sandbox) error {
	return h.names.serve(ctx, shim, id, sandbox)
}
