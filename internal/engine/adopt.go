// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"os"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"holdfast/internal/engine/rebind"
	"holdfast/internal/shim/proto"
)

// adopter connects actors to shims that were found or spawned for running containers,
// and completes what an earlier daemon may not have finished for them.
type adopter struct {
	config    *settings
	losses    *losses
	endpoints *endpoints
}

// attach sets the container's shim to one that was found, and subscribes to it.
// The channel is closed when the subscription has begun.
func (d *adopter) attach(a *actor, shim Shim) <-chan struct{} {
	subscribed := make(chan struct{})
	d.restoreFiles(a)
	if shim == nil {
		// HaltLeft of a container whose shim is gone and whose process lives.
		go d.losses.watchProcess(a, a.rec)
		close(subscribed)
		return subscribed
	}
	a.shim = shim
	if a.phase.State.Alive() {
		d.rebindSockets(a)
	}
	go func() {
		defer close(subscribed)
		d.subscribe(a, shim)
	}()
	return subscribed
}

// subscribe subscribes to the reports of a shim that was found, including its
// journal. Reports that the shim sends before subscribe returns may be lost, so the
// daemon requests nothing of the shim until then.
func (d *adopter) subscribe(a *actor, shim Shim) {
	if to, ok := shim.(acknowledger); ok {
		to.Heard(0, 0)
	}
	err := shim.Subscribe(context.Background(), 0, func(ev proto.Event) {
		a.post(func() { receive(a, shim, ev, a.handleReplayed) })
	})
	if err != nil {
		a.log.Warn("the subscription to the shim failed, connecting to it again", "error", err)
		shim.Close()
		<-shim.Done()
		a.watchShim(shim)
		return
	}
	a.watchShim(shim)
	d.restoreNames(a, shim)
	d.restorePorts(a, shim)
}

// restoreFiles updates the files of a container that was found, if an earlier
// daemon may have died before it did.
func (d *adopter) restoreFiles(a *actor) {
	if !a.sandbox.Moved {
		return
	}
	if err := a.effects.updateFiles(a.spec, a.req, a.sandbox); err != nil {
		a.log.Warn("the container's hosts and resolv.conf files could not be updated", "error", err)
	}
}

// restorePorts informs a shim that was found of the targets of its container's ports,
// if an earlier daemon may have died before it did.
func (d *adopter) restorePorts(a *actor, shim Shim) {
	a.post(func() {
		if a.shim == shim && a.sandbox.Moved && a.phase.State.Alive() {
			d.endpoints.updateShimPorts(a, shim, a.sandbox, nil)
		}
	})
}

// restoreNames passes the sockets of the container's name server to a shim that has
// none, because it replaced one that was killed.
func (d *adopter) restoreNames(a *actor, shim Shim) {
	v := a.view.Load()
	if shim.Hello().Names || !v.state.Alive() {
		return
	}
	if err := a.effects.serveNames(context.Background(), shim, a.id, v.sandbox); err != nil {
		a.log.Warn("the container's name server could not be set up: names do not resolve in the container until it is started again", "error", err)
	}
}

// rebindSockets replaces bind mounts of the API's sockets in a running container, if
// this daemon had to create new sockets. A container with a bind mount of the
// socket's folder sees the new socket anyway.
func (d *adopter) rebindSockets(a *actor) {
	for _, m := range a.mounts {
		if m.Type != mount.TypeBind || !d.isSocket(m.Source) {
			continue
		}
		changed, err := a.rebindSocket(m)
		switch {
		case err != nil:
			a.log.Warn("the container has the API socket of an earlier daemon mounted, on which no daemon answers: restart the container", "destination", m.Destination, "error", err)
		case changed:
			a.log.Info("the API's new socket was mounted in the container", "destination", m.Destination)
		}
	}
}

func (a *actor) rebindSocket(m mountPoint) (changed bool, err error) {
	namespace, err := rebind.Namespace(a.rec.Pid)
	if err != nil {
		return false, err
	}
	defer namespace.Close()
	if !alive(a.rec) {
		return false, nil // the pid may have been reused, so the namespace may be another process's
	}
	return rebind.Socket(namespace, m.Source, m.Destination, !m.RW)
}

// isSocket reports whether the API is served on the socket at a path.
func (d *adopter) isSocket(path string) bool {
	there, err := os.Stat(path)
	if err != nil {
		return false
	}
	for _, address := range d.config.Load().Addresses() {
		socket, unix := strings.CutPrefix(address, "unix://")
		if !unix {
			continue
		}
		if st, err := os.Stat(socket); err == nil && os.SameFile(st, there) {
			return true
		}
	}
	return false
}
