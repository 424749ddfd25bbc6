package engine

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/shim/proto"
)

// zeroTime is how the API writes a time that has not come.
const zeroTime = "0001-01-01T00:00:00Z"

// ContainerInspect tells all about a container. It never waits for anything.
func (e *Engine) ContainerInspect(ctx context.Context, ref string, size bool) (moby.InspectResponse, error) {
	a, err := e.index.find(ref)
	if err != nil {
		return moby.InspectResponse{}, err
	}
	v := a.view.Load()
	dir := e.store.ContainerDir(a.id)
	path, args := commandOf(v.req.Config)
	r := moby.InspectResponse{
		ID: a.id, Created: v.spec.Created.Format(time.RFC3339Nano),
		Path: path, Args: args,
		State:           e.troubled(v, apiState(v)),
		Image:           v.spec.Image.ID,
		ResolvConfPath:  filepath.Join(dir, "resolv.conf"),
		HostnamePath:    filepath.Join(dir, "hostname"),
		HostsPath:       filepath.Join(dir, "hosts"),
		LogPath:         "",
		Name:            "/" + v.spec.Name,
		RestartCount:    v.rec.RestartCount,
		Driver:          v.spec.Image.Storage,
		Platform:        "linux",
		HostConfig:      v.req.HostConfig,
		Config:          v.req.Config,
		Mounts:          apiMounts(v.mounts),
		ExecIDs:         runningExecs(v.rec),
		NetworkSettings: e.networkSettings(v),
		GraphDriver:     &storage.DriverData{Name: v.spec.Image.Storage},

		ImageManifestDescriptor: manifestDescriptor(v.spec.Image),
	}
	if v.req.HostConfig.LogConfig.Type == oci.LogDriverJSON {
		r.LogPath = e.store.LogPath(a.id, oci.LogDriverJSON)
	}
	if e.host.AppArmor && !v.req.HostConfig.Privileged {
		r.AppArmorProfile = "holdfast-default"
	}
	if size {
		rw, err := e.images.RootfsUsage(dir)
		if err != nil {
			return moby.InspectResponse{}, err
		}
		total := rw + v.spec.Image.LayerBytes
		r.SizeRw, r.SizeRootFs = &rw, &total
	}
	return r, nil
}

// manifestDescriptor describes the manifest that a container was made of; nil
// where its record doesn't tell.
func manifestDescriptor(i container.Image) *ocispec.Descriptor {
	platform, err := platforms.Parse(i.Platform)
	if i.ManifestType == "" || err != nil {
		return nil
	}
	return &ocispec.Descriptor{
		MediaType: i.ManifestType, Digest: digest.Digest(i.Manifest), Size: i.ManifestSize, Platform: &platform,
	}
}

// commandOf is what a container runs: its entrypoint, then its command.
func commandOf(c *moby.Config) (string, []string) {
	all := append(slices.Clone(c.Entrypoint), c.Cmd...)
	if len(all) == 0 {
		return "", []string{}
	}
	return all[0], append([]string{}, all[1:]...)
}

// exit is the record of the last end: the shim's, or the start that failed.
func (v *view) exit() proto.State {
	rec := v.rec
	if f := v.spec.Failure; f != nil {
		rec.ExitCode, rec.Error = f.ExitCode, f.Error
	}
	return rec
}

func (a *actor) exit() proto.State { return a.view.Load().exit() }

// runs is what the API calls running.
func runs(s container.State) bool {
	switch s {
	case container.Running, container.Stopping, container.Unknown, container.Paused, container.Restarting:
		return true
	}
	return false
}

// apiState derives the API's booleans from the one state.
func apiState(v *view) *moby.State {
	rec := v.exit()
	st := &moby.State{
		Status:     moby.ContainerState(v.state.Docker(v.hasRun())),
		Error:      rec.Error,
		ExitCode:   rec.ExitCode,
		OOMKilled:  rec.OOMKilled,
		StartedAt:  apiTime(rec.Started),
		FinishedAt: apiTime(rec.Finished),
	}
	st.Running = runs(v.state)
	switch v.state {
	case container.Running, container.Stopping, container.Unknown:
		st.Pid = rec.Pid
	case container.Paused:
		st.Paused, st.Pid = true, rec.Pid
	case container.Restarting:
		st.Restarting = true
	case container.Dead:
		st.Dead = true
	}
	if st.Running && !st.Restarting {
		st.ExitCode, st.Error = 0, ""
	}
	if h := rec.Health; h != nil {
		st.Health = &moby.Health{Status: moby.HealthStatus(h.Status), FailingStreak: h.FailingStreak, Log: []*moby.HealthcheckResult{}}
		for _, l := range h.Log {
			st.Health.Log = append(st.Health.Log, &moby.HealthcheckResult{Start: l.Start, End: l.End, ExitCode: l.ExitCode, Output: l.Output})
		}
	} else if hc := v.req.Config.Healthcheck; hc != nil && len(hc.Test) > 0 && hc.Test[0] != "NONE" {
		st.Health = &moby.Health{Status: moby.Starting, Log: []*moby.HealthcheckResult{}}
	}
	return st
}

// troubled tells with a running container what of it could not be restored.
func (e *Engine) troubled(v *view, st *moby.State) *moby.State {
	n, ok := e.networks.(interface {
		Troubles(container string) []string
	})
	if ok && st.Running && st.Error == "" {
		st.Error = strings.Join(n.Troubles(v.spec.ID), "; ")
	}
	return st
}

func apiTime(t time.Time) string {
	if t.IsZero() {
		return zeroTime
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func apiMounts(mounts []mountPoint) []moby.MountPoint {
	out := make([]moby.MountPoint, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, m.MountPoint)
	}
	return out
}

func runningExecs(rec proto.State) []string {
	var ids []string
	for _, x := range rec.Execs {
		if x.Running {
			ids = append(ids, x.Exec)
		}
	}
	return ids
}

// onNetworks reports whether the container has endpoints of its own.
func (v *view) onNetworks() bool {
	return v.state.Alive() && v.sandbox.ID != "" && !v.req.HostConfig.NetworkMode.IsContainer()
}

// networkSettings are a container's networks and published ports. What was
// asked for stands there also while nothing runs.
func (e *Engine) networkSettings(v *view) *moby.NetworkSettings {
	switch {
	case v.req.HostConfig.NetworkMode.IsContainer():
		return &moby.NetworkSettings{Networks: map[string]*mobynet.EndpointSettings{}, Ports: mobynet.PortMap{}}
	case v.onNetworks():
		return withDNSNames(v, e.networks.Settings(v.sandbox))
	}
	return withDNSNames(v, e.networks.Idle(networkRequest(v.spec, v.req)))
}

// shortCommand is the command as a list shows it.
func shortCommand(c *moby.Config) string {
	path, args := commandOf(c)
	var words []string
	for _, w := range append([]string{path}, args...) {
		if strings.ContainsAny(w, " '") {
			w = "'" + w + "'"
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}
