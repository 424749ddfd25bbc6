// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"os"
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

// zeroTime is the API's value for a time that is not set.
const zeroTime = "0001-01-01T00:00:00Z"

// currentView returns the snapshot of a container for readers. Until the restore is
// done it consults the container's files, which may be newer than the published
// snapshot: a shim that ends meanwhile writes its record and answers clients, and
// later answers of the daemon must agree with that.
func (i *inspector) currentView(a *actor) *view {
	for {
		restored := i.isRestored() // first: from then on every snapshot is as new as the files
		v := a.view.Load()
		if restored || i.observes.Load() {
			return v
		}
		rec, last := i.records.last(&v.spec, i.records.read(&v.spec))
		if a.view.Load() != v {
			continue // the new snapshot may be older than the files, too
		}
		if !newer(rec, v) {
			return v
		}
		return &view{spec: v.spec, req: v.req, mounts: v.mounts, sandbox: v.sandbox, state: container.Loaded(v.spec.Desired, last, !rec.Started.IsZero()).State, rec: rec, shim: v.shim, places: v.places, linked: v.linked}
	}
}

// newer reports whether a record that was read from the files after the snapshot v was
// published says something else than v. A pause has no number of its own. A snapshot with
// the record of an end is still that of a run until the loop has handled the shim's last
// report.
func newer(rec proto.State, v *view) bool {
	r := recordOf(rec)
	switch {
	case rec.Life != v.rec.Life:
		return false
	case r.Over() && v.state.Alive(): // the record of an end is written before the last number
		return true
	case rec.Seq == v.rec.Seq:
		return r.Alive() && v.state.Alive() && rec.Status != v.rec.Status
	}
	return rec.Seq > v.rec.Seq
}

// ContainerInspect returns a container's configuration and state. It does not wait
// for the restore or for the container's loop.
func (i *inspector) ContainerInspect(ctx context.Context, ref string, size bool) (moby.InspectResponse, error) {
	a, err := i.index.find(ref)
	if err != nil {
		return moby.InspectResponse{}, err
	}
	v := i.currentView(a)
	dir := i.store.ContainerDir(a.id)
	path, args := commandOf(v.req.Config)
	// A container that joins another's network uses the files and host name of that
	// container.
	files, config := dir, v.req.Config
	if owner, err := i.index.ownerOf(v, networkOf); err == nil && owner != v {
		files = i.store.ContainerDir(owner.spec.ID)
		config = namedAs(config, owner)
	}
	r := moby.InspectResponse{
		ID: a.id, Created: v.spec.Created.Format(time.RFC3339Nano),
		Path: path, Args: args,
		State:           i.withTroubles(v, apiState(v)),
		Image:           v.spec.Image.ID,
		Name:            "/" + v.spec.Name,
		RestartCount:    v.rec.RestartCount,
		Driver:          v.spec.Image.Storage,
		Platform:        "linux",
		HostConfig:      i.apiHostConfig(v),
		Config:          config,
		Mounts:          apiMounts(v.mounts),
		ExecIDs:         openExecs(v),
		NetworkSettings: networkSettings(i.networks, v),
		Storage: &storage.Storage{RootFS: &storage.RootFSStorage{
			Snapshot: &storage.RootFSStorageSnapshot{Name: v.spec.Image.Storage},
		}},

		ImageManifestDescriptor: manifestDescriptor(v.spec.Image),
	}
	// The first start creates these files.
	if v.hasRun() || v.spec.Failure != nil {
		r.ResolvConfPath = filepath.Join(files, "resolv.conf")
		r.HostnamePath = filepath.Join(files, "hostname")
		r.HostsPath = filepath.Join(files, "hosts")
		if v.req.HostConfig.LogConfig.Type == oci.LogDriverJSON {
			// A start may have failed before the log was created.
			path := i.store.LogPath(a.id, oci.LogDriverJSON)
			made := v.hasRun()
			if !made {
				_, err := os.Lstat(path)
				made = err == nil
			}
			if made {
				r.LogPath = path
			}
		}
	}
	r.AppArmorProfile = oci.AskedAppArmor(v.req.HostConfig)
	if r.AppArmorProfile == "" && i.host.AppArmor && !v.req.HostConfig.Privileged {
		r.AppArmorProfile = oci.AppArmorProfile
	}
	if size {
		rw, err := i.images.RootfsUsage(dir)
		if err != nil {
			return moby.InspectResponse{}, err
		}
		total := rw + v.spec.Image.LayerBytes
		r.SizeRw, r.SizeRootFs = &rw, &total
	}
	return r, nil
}

// ContainerMAC returns the MAC address that the user requested on the container's
// main network; nil if the engine chose it. Tools create copies of a container
// from what inspect shows, and a copy must not request the address that the engine
// chose for the original.
func (i *inspector) ContainerMAC(ref string) (mobynet.HardwareAddr, error) {
	a, err := i.index.find(ref)
	if err != nil {
		return nil, err
	}
	req := a.view.Load().req
	if req.Networking == nil {
		return nil, nil
	}
	if es := req.Networking.EndpointsConfig[req.HostConfig.NetworkMode.NetworkName()]; es != nil {
		return es.MacAddress, nil
	}
	return nil, nil
}

// manifestDescriptor describes the manifest that a container was created from; nil
// if the container's record does not contain it.
func manifestDescriptor(i container.Image) *ocispec.Descriptor {
	platform, err := platforms.Parse(i.Platform)
	if i.ManifestType == "" || err != nil {
		return nil
	}
	return &ocispec.Descriptor{
		MediaType: i.ManifestType, Digest: digest.Digest(i.Manifest), Size: i.ManifestSize, Platform: &platform,
	}
}

// commandOf returns the path and the arguments of what a container runs: its
// entrypoint followed by its command.
func commandOf(c *moby.Config) (string, []string) {
	all := append(slices.Clone(c.Entrypoint), c.Cmd...)
	if len(all) == 0 {
		return "", []string{}
	}
	return all[0], append([]string{}, all[1:]...)
}

// exit returns the record of the last end: the shim's record, with the exit code and
// error of a start that failed.
func (v *view) exit() proto.State {
	rec := v.rec
	if f := v.spec.Failure; f != nil {
		rec.ExitCode, rec.Error = f.ExitCode, f.Error
	}
	return rec
}

func (a *actor) exit() proto.State { return a.view.Load().exit() }

// runs reports whether the API shows a state as running.
func runs(s container.State) bool {
	switch s {
	case container.Running, container.Ending, container.Unknown, container.Paused, container.Restarting:
		return true
	}
	return false
}

// apiState derives the API's booleans from the state.
func apiState(v *view) *moby.State {
	rec := v.exit()
	if rec.Pid == 0 && runs(v.state) && v.ran.Life == rec.Life && v.ran.Pid != 0 {
		// The run has ended, and is shown until the next request can succeed.
		rec = v.ran
	}
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
	case container.Running, container.Ending, container.Unknown:
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
	var seen proto.HealthState
	if rec.Health != nil {
		seen = *rec.Health
	}
	hc := v.req.Config.Healthcheck
	checked := hc != nil && len(hc.Test) > 0 && hc.Test[0] != "NONE"
	if status := container.Health(v.state, v.hasRun(), checked, seen.Status); status != container.HealthNone {
		st.Health = &moby.Health{Status: moby.HealthStatus(status), FailingStreak: seen.FailingStreak, Log: []*moby.HealthcheckResult{}}
		for _, l := range seen.Log {
			st.Health.Log = append(st.Health.Log, &moby.HealthcheckResult{Start: l.Start, End: l.End, ExitCode: l.ExitCode, Output: l.Output})
		}
	}
	return st
}

// withTroubles adds to a running container's state what the network could not
// restore of it.
func (i *inspector) withTroubles(v *view, st *moby.State) *moby.State {
	n, ok := i.networks.(interface {
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

// openExecs returns the IDs of exec sessions that run or may still be started.
func openExecs(v *view) []string {
	if !runs(v.state) {
		return nil
	}
	var ids []string
	for _, x := range v.rec.Execs {
		if x.Running || !x.Started {
			ids = append(ids, x.Exec)
		}
	}
	return ids
}

// onNetworks reports whether the container has endpoints of its own.
func (v *view) onNetworks() bool {
	return v.state.Alive() && v.sandbox.ID != "" && !v.req.HostConfig.NetworkMode.IsContainer()
}

// networkSettings returns a container's networks and published ports. While the
// container does not run these are the requested ones.
func networkSettings(n Networks, v *view) *moby.NetworkSettings {
	switch {
	case v.req.HostConfig.NetworkMode.IsContainer(), v.req.Config.NetworkDisabled:
		return &moby.NetworkSettings{Networks: map[string]*mobynet.EndpointSettings{}, Ports: mobynet.PortMap{}}
	case v.onNetworks():
		return withDNSNames(v, n.Settings(v.sandbox))
	}
	s := n.Idle(networkRequest(v.spec, v.req))
	if !v.hasRun() {
		// The first start resolves the names of the networks, so that there are no IDs
		// before it.
		for _, ep := range s.Networks {
			ep.NetworkID = ""
		}
		return s
	}
	return withDNSNames(v, s)
}

// shortCommand returns the command as the list of containers shows it.
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
