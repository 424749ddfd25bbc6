// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"time"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/shim/proto"
)

// A container that joins namespaces of others depends on them: it can only start
// while they run. What belongs to a namespace, such as the hosts file, is that of
// the container which created the namespace, even if there are others in between.
// The shim joins the namespaces before each run, as it finds the other container's
// process at that time.

// Backoff of a start by the restart policy, while a container that it joins is about
// to run.
const (
	peerFirst = 50 * time.Millisecond
	peerMost  = 5 * time.Second
	// peerTime bounds the waiting and the attempts: while a start is due, no other
	// daemon can take over.
	peerTime = time.Minute
)

// joined is a requested namespace of another container.
type joined struct {
	ref   string   // the container's ID; its name in records of earlier releases
	what  string   // in messages
	kinds []string // names in /proc/PID/ns
}

// joinsOf returns the namespaces of other containers that a request joins.
func joinsOf(req request) (list []joined) {
	h := req.HostConfig
	if h.NetworkMode.IsContainer() {
		list = append(list, joined{h.NetworkMode.ConnectedContainer(), "network", []string{proto.JoinNet}})
	}
	if h.IpcMode.IsContainer() {
		list = append(list, joined{h.IpcMode.Container(), "IPC", []string{proto.JoinIPC}})
	}
	if h.PidMode.IsContainer() {
		list = append(list, joined{h.PidMode.Container(), "PID", []string{proto.JoinPID}})
	}
	return list
}

// networkOf and ipcOf are the argument next of ownerOf.
func networkOf(h *moby.HostConfig) (string, bool) {
	return h.NetworkMode.ConnectedContainer(), h.NetworkMode.IsContainer()
}

func ipcOf(h *moby.HostConfig) (string, bool) {
	return h.IpcMode.Container(), h.IpcMode.IsContainer()
}

// namedAs returns a configuration with the host name of another container.
func namedAs(c *moby.Config, owner *view) *moby.Config {
	own := *c
	own.Hostname, own.Domainname = owner.req.Config.Hostname, owner.req.Config.Domainname
	return &own
}

// joinPeers sets the namespaces that a container shares with others, and returns
// what the shim has to join before each run.
func (b *bundler) joinPeers(in *oci.Input, req request) ([]proto.Join, error) {
	var joins []proto.Join
	path := func(kind string) string { return proto.JoinedPath(b.store.RunDir(in.ID), kind) }
	for _, j := range joinsOf(req) {
		a, err := b.index.find(j.ref)
		if err != nil {
			return nil, err
		}
		v := a.view.Load()
		if !apiState(v).Running || v.rec.Pid == 0 {
			return nil, errs.Conflict("cannot join %s of a non running container: %s", j.what, v.spec.Name)
		}
		if m := v.req.HostConfig.IpcMode; j.what == "IPC" {
			if m.IsPrivate() || m.IsNone() {
				return nil, errs.Conflict("cannot join IPC of container %s: its IPC is not shareable, create it with --ipc=shareable", v.spec.Name)
			}
			owner, err := b.index.ownerOf(v, ipcOf)
			if err != nil {
				return nil, err
			}
			if in.ShmPath = b.mounter.shmPath(owner.spec.ID); owner.req.HostConfig.IpcMode.IsHost() {
				in.ShmPath = hostShm
			}
		}
		for _, kind := range j.kinds {
			switch kind {
			case proto.JoinNet:
				in.Namespaces.Net = path(kind)
				// As in Docker, it has the owner's host name, in its own UTS namespace.
				owner, err := b.index.ownerOf(v, networkOf)
				if err != nil {
					return nil, err
				}
				in.Config = namedAs(in.Config, owner)
			case proto.JoinIPC:
				in.Namespaces.IPC = path(kind)
			case proto.JoinPID:
				in.Namespaces.PID = path(kind)
			}
		}
		joins = append(joins, proto.Join{ID: a.id, Name: v.spec.Name, What: j.what, Dir: b.store.RunDir(a.id), Kinds: j.kinds})
	}
	return joins, nil
}

// awaitPeers waits until no start by the restart policy is due for the containers
// that a request joins. It reports whether one of them may still begin to run.
func (s *scheduler) awaitPeers(req request) (coming bool) {
	timer := time.NewTimer(peerTime)
	defer timer.Stop()
	for _, j := range joinsOf(req) {
		a, err := s.index.find(j.ref)
		if err != nil {
			continue
		}
		a.await(func() {}) // the container's loop has applied what was posted before
		if due := a.view.Load().due; due != nil {
			select {
			case <-due:
			case <-timer.C:
				return false
			case <-s.closing:
			}
		}
		v := a.view.Load()
		coming = coming || v.due != nil || v.state.Alive() && v.state != container.Running && v.state != container.Paused
	}
	return coming
}
