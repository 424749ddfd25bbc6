// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"time"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/volume"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/engine/sysinfo"
)

// newSystem returns what answers questions about the daemon.
func newSystem(e *Engine) *sysinfo.System {
	return sysinfo.New(sysinfo.Deps{
		ID: e.id, Release: e.release, Started: time.Now(), Log: e.log, Lives: e.lives,
		Driver:    func() string { return e.images.Driver() },
		Host:      e.hostNow,
		Listeners: e.eventStreams.count,
		Config: func() sysinfo.Config {
			cfg := e.config.Load()
			return sysinfo.Config{Config: cfg.Config, Defaults: cfg.Defaults, AllRuntimes: cfg.runtimes()}
		},
		Containers: census{e},
		Objects:    inventory{e},
		Builds:     e.builds,
	})
}

// hostNow returns the host with values that may have changed since the daemon
// started. Restoring the networks enables forwarding, so until the restore is done
// there is no warning about it.
func (e *Engine) hostNow() oci.Host {
	h := e.host
	if e.isRestored() {
		return h.Forwarding()
	}
	h.IPv4ForwardingDisabled = false
	return h
}

// census implements sysinfo.Containers.
type census struct{ e *Engine }

func (c census) Counts() (running, paused, stopped int) {
	for _, a := range c.e.index.all() {
		switch s := apiState(a.view.Load()); {
		case s.Paused:
			paused++
		case s.Running:
			running++
		default:
			stopped++
		}
	}
	return running, paused, stopped
}

func (c census) Unread() []string { return c.e.index.unread }

func (c census) Sizes(ctx context.Context) ([]moby.Summary, error) {
	return c.e.ContainerList(ctx, ListOptions{All: true, Size: true})
}

func (c census) Running() []sysinfo.StatusContainer {
	var list []sysinfo.StatusContainer
	for _, a := range c.e.index.all() {
		v := a.view.Load()
		if !v.state.Alive() || v.state == container.Starting {
			continue
		}
		s := sysinfo.StatusContainer{
			ID: a.id, Name: v.spec.Name, Status: v.state.String(), Pid: v.rec.Pid, Started: v.rec.Started, ShimPid: v.rec.ShimPid,
		}
		if v.shim != nil {
			s.ShimVersion = v.shim.Hello().Release
		}
		list = append(list, s)
	}
	return list
}

// inventory implements sysinfo.Objects.
type inventory struct{ e *Engine }

func (i inventory) ImagesCount(ctx context.Context) (int, error) { return i.e.Images.Count(ctx) }

func (i inventory) ImagesUsage(ctx context.Context) (image.DiskUsage, error) {
	return i.e.Images.ImagesUsage(ctx)
}

func (i inventory) VolumesUsage(ctx context.Context) *volume.DiskUsage {
	return i.e.Volumes.VolumesUsage(ctx)
}
