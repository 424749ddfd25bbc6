// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/engine"
	"holdfast/internal/engine/objects"
	"holdfast/internal/engine/sysinfo"
	"holdfast/internal/event"
	"holdfast/internal/filter"
)

// fake is an engine that records its calls. Every call returns err; the
// functions, if set, do more.
type fake struct {
	mu    sync.Mutex
	calls []string
	err   error
	late  error // returned after an archive has begun

	created     engine.CreateOptions
	attach      func(ctx context.Context, o engine.AttachOptions) error
	execStart   func(ctx context.Context, o engine.ExecStartOptions) error
	logs        func(ctx context.Context, o engine.LogsOptions) (engine.LogReader, bool, error)
	wait        func(ctx context.Context) <-chan container.WaitResponse
	stats       func(ctx context.Context, emit func(container.StatsResponse) error) error
	pull        func(ctx context.Context, progress func(jsonstream.Message)) error
	load        func(ctx context.Context, src io.Reader, progress func(jsonstream.Message)) error
	events      func(ctx context.Context, o engine.EventsOptions, send func(event.Message) error) error
	inspect     container.InspectResponse
	image       image.InspectResponse
	parent      string
	images      []image.Summary
	usage       system.DiskUsage
	panicOnInfo bool
}

func (f *fake) call(method string, args ...any) error {
	parts := make([]string, len(args))
	for i, a := range args {
		parts[i] = fmt.Sprintf("%+v", a)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, method+"("+strings.Join(parts, ", ")+")")
	return f.err
}

// last is the last call.
func (f *fake) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		return ""
	}
	return f.calls[len(f.calls)-1]
}

func platform(p *ocispec.Platform) string {
	if p == nil {
		return "host"
	}
	return p.OS + "/" + p.Architecture + "/" + p.Variant
}

func (f *fake) ContainerCreate(_ context.Context, o engine.CreateOptions) (container.CreateResponse, error) {
	f.created = o
	return container.CreateResponse{ID: "c1"}, f.call("ContainerCreate", o.Name, platform(o.Platform), o.Request.Image, o.Request.Cmd)
}

func (f *fake) ContainerList(_ context.Context, o engine.ListOptions) ([]container.Summary, error) {
	return []container.Summary{{ID: "c1"}}, f.call("ContainerList", o)
}

func (f *fake) ContainerInspect(_ context.Context, ref string, size bool) (container.InspectResponse, error) {
	return f.inspect, f.call("ContainerInspect", ref, size)
}

func (f *fake) ContainerMAC(string) (network.HardwareAddr, error) {
	return network.HardwareAddr{2, 0, 0, 0, 0, 9}, nil
}

func (f *fake) ContainerStart(_ context.Context, ref string) error {
	return f.call("ContainerStart", ref)
}

func stopArgs(o engine.StopOptions) string {
	if o.Timeout == nil {
		return o.Signal + " default"
	}
	return fmt.Sprintf("%s %d", o.Signal, *o.Timeout)
}

func (f *fake) ContainerStop(_ context.Context, ref string, o engine.StopOptions) error {
	return f.call("ContainerStop", ref, stopArgs(o))
}

func (f *fake) ContainerRestart(_ context.Context, ref string, o engine.StopOptions) error {
	return f.call("ContainerRestart", ref, stopArgs(o))
}

func (f *fake) ContainerStatPath(_ context.Context, ref, path string) (container.PathStat, error) {
	return container.PathStat{Name: "f", Size: 3}, f.call("ContainerStatPath", ref, path)
}

func (f *fake) ContainerArchive(_ context.Context, ref, path string, begin func(container.PathStat) io.Writer) error {
	if err := f.call("ContainerArchive", ref, path); err != nil {
		return err
	}
	_, err := io.WriteString(begin(container.PathStat{Name: "f", Size: 3}), "tar")
	if f.late != nil {
		return f.late
	}
	return err
}

func (f *fake) ContainerExtract(_ context.Context, ref, path string, o engine.ExtractOptions, src io.Reader) error {
	b, err := io.ReadAll(src)
	if err != nil {
		return err
	}
	return f.call("ContainerExtract", ref, path, o, string(b))
}

func (f *fake) ContainerExport(_ context.Context, ref string, begin func() io.Writer) error {
	if err := f.call("ContainerExport", ref); err != nil {
		return err
	}
	_, err := io.WriteString(begin(), "tar")
	return err
}

func (f *fake) ContainerCommit(_ context.Context, ref string, o engine.CommitOptions) (string, error) {
	own := o.Config != nil
	o.Config = nil
	return "sha256:1", f.call("ContainerCommit", ref, o, own)
}

func (f *fake) ContainerChanges(_ context.Context, ref string) ([]container.FilesystemChange, error) {
	return []container.FilesystemChange{{Kind: container.ChangeAdd, Path: "/a"}}, f.call("ContainerChanges", ref)
}

func (f *fake) ContainerKill(_ context.Context, ref, signal string) error {
	return f.call("ContainerKill", ref, signal)
}

func (f *fake) ContainerPause(_ context.Context, ref string) error {
	return f.call("ContainerPause", ref)
}

func (f *fake) ContainerUnpause(_ context.Context, ref string) error {
	return f.call("ContainerUnpause", ref)
}

func (f *fake) ContainerRename(_ context.Context, ref, name string) error {
	return f.call("ContainerRename", ref, name)
}

func (f *fake) ContainerUpdate(_ context.Context, ref string, u container.UpdateConfig) (container.UpdateResponse, error) {
	return container.UpdateResponse{Warnings: []string{"w"}}, f.call("ContainerUpdate", ref, u.Memory)
}

func (f *fake) ContainerWait(ctx context.Context, ref string, c container.WaitCondition) (<-chan container.WaitResponse, error) {
	if err := f.call("ContainerWait", ref, c); err != nil {
		return nil, err
	}
	return f.wait(ctx), nil
}

func (f *fake) ContainerWaitHeld(_ context.Context, ref string, c container.WaitCondition, _ func() (*engine.Client, []byte, error)) error {
	return f.call("ContainerWaitHeld", ref, c)
}

func (f *fake) ContainerRemove(_ context.Context, ref string, o engine.RemoveOptions) error {
	return f.call("ContainerRemove", ref, o)
}

func (f *fake) ContainerAttach(ctx context.Context, ref string, o engine.AttachOptions) error {
	if err := f.call("ContainerAttach", ref, o.Stdin, o.Stdout, o.Stderr, o.Stream, o.Logs, o.DetachKeys); err != nil {
		return err
	}
	return f.attach(ctx, o)
}

func (f *fake) ContainerResize(_ context.Context, ref string, height, width uint) error {
	return f.call("ContainerResize", ref, height, width)
}

func (f *fake) ContainerLogs(ctx context.Context, ref string, o engine.LogsOptions) (engine.LogReader, bool, error) {
	if err := f.call("ContainerLogs", ref, o.Stdout, o.Stderr, o.Follow, o.Since.UnixNano(), o.Until.UnixNano(), o.Tail); err != nil {
		return nil, false, err
	}
	return f.logs(ctx, o)
}

func (f *fake) ContainerFollow(context.Context, string, engine.FollowOptions) (bool, error) {
	return false, nil
}

func (f *fake) ContainerTop(_ context.Context, ref, psArgs string) (container.TopResponse, error) {
	return container.TopResponse{Titles: []string{"PID"}}, f.call("ContainerTop", ref, psArgs)
}

func (f *fake) ContainerStats(ctx context.Context, ref string, stream, oneShot bool, emit func(container.StatsResponse) error) error {
	if err := f.call("ContainerStats", ref, stream, oneShot); err != nil {
		return err
	}
	return f.stats(ctx, emit)
}

func (f *fake) ContainersPrune(_ context.Context, a filter.Args) (container.PruneReport, error) {
	return container.PruneReport{SpaceReclaimed: 7}, f.call("ContainersPrune", a)
}

func (f *fake) ExecCreate(_ context.Context, ref string, r container.ExecCreateRequest) (string, error) {
	return "e1", f.call("ExecCreate", ref, r.Cmd)
}

func (f *fake) ExecStart(ctx context.Context, id string, o engine.ExecStartOptions) error {
	if err := f.call("ExecStart", id, o.Detach, o.Tty); err != nil {
		return err
	}
	if f.execStart != nil {
		return f.execStart(ctx, o)
	}
	return nil
}

func (f *fake) ExecResize(_ context.Context, id string, height, width uint) error {
	return f.call("ExecResize", id, height, width)
}

func (f *fake) ExecInspect(_ context.Context, id string) (container.ExecInspectResponse, error) {
	return container.ExecInspectResponse{ID: id, Pid: 42}, f.call("ExecInspect", id)
}

func (f *fake) ImagePull(ctx context.Context, ref string, p *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error {
	user := "anonymous"
	if auth != nil {
		user = auth.Username
	}
	if err := f.call("ImagePull", ref, platform(p), user, all); err != nil {
		return err
	}
	if f.pull != nil {
		return f.pull(ctx, progress)
	}
	return nil
}

func (f *fake) ImageImport(_ context.Context, src io.Reader, ref, message string, changes []string, p *ocispec.Platform) (string, error) {
	b, err := io.ReadAll(src)
	if err != nil {
		return "", err
	}
	return "sha256:1", f.call("ImageImport", string(b), ref, message, changes, platform(p))
}

func (f *fake) ImageLoad(ctx context.Context, src io.Reader, platforms []ocispec.Platform, progress func(jsonstream.Message)) error {
	if err := f.call("ImageLoad", len(platforms)); err != nil {
		return err
	}
	return f.load(ctx, src, progress)
}

func (f *fake) ImagePush(_ context.Context, ref string, p *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error {
	progress(jsonstream.Message{Status: "pushing"})
	user := ""
	if auth != nil {
		user = auth.Username
	}
	return f.call("ImagePush", ref, platform(p), user, all)
}

func (f *fake) ImageSave(_ context.Context, names []string, platforms []ocispec.Platform, begin func() io.Writer) error {
	if err := f.call("ImageSave", names, len(platforms)); err != nil {
		return err
	}
	_, err := io.WriteString(begin(), "tar")
	return err
}

func (f *fake) ImageList(_ context.Context, o objects.ImageListOptions) ([]image.Summary, error) {
	return f.images, f.call("ImageList", o)
}

func (f *fake) ImageInspect(_ context.Context, ref string, p *ocispec.Platform, manifests bool) (objects.ImageInspected, error) {
	return objects.ImageInspected{InspectResponse: f.image, Parent: f.parent}, f.call("ImageInspect", ref, platform(p), manifests)
}

func (f *fake) ImageHistory(_ context.Context, ref string, p *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	return nil, f.call("ImageHistory", ref, platform(p))
}

func (f *fake) ImageTag(_ context.Context, src, repoTag string) error {
	return f.call("ImageTag", src, repoTag)
}

func (f *fake) ImageRemove(_ context.Context, ref string, force, noprune bool) ([]image.DeleteResponse, error) {
	return nil, f.call("ImageRemove", ref, force, noprune)
}

func (f *fake) ImageRemovePlatforms(_ context.Context, ref string, p []ocispec.Platform, force bool) ([]image.DeleteResponse, error) {
	return []image.DeleteResponse{{Deleted: "sha256:1"}}, f.call("ImageRemovePlatforms", ref, p, force)
}

func (f *fake) ImageAttestations(_ context.Context, ref string, _ *ocispec.Platform, types []string, bodies bool) ([]image.AttestationStatement, error) {
	return nil, f.call("ImageAttestations", ref, types, bodies)
}

func (f *fake) Search(_ context.Context, term string, limit int, _ filter.Args, _ *registry.AuthConfig) ([]registry.SearchResult, error) {
	return nil, f.call("Search", term, limit)
}

func (f *fake) Distribution(_ context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error) {
	return registry.DistributionInspect{Platforms: []ocispec.Platform{{OS: "linux", Architecture: "amd64"}}}, f.call("Distribution", ref)
}

func (f *fake) ImagesPrune(_ context.Context, a filter.Args) (image.PruneReport, error) {
	return image.PruneReport{SpaceReclaimed: 8}, f.call("ImagesPrune", a)
}

func (f *fake) VolumeCreate(_ context.Context, r volume.CreateRequest) (volume.Volume, error) {
	return volume.Volume{Name: r.Name}, f.call("VolumeCreate", r.Name, r.Driver)
}

func (f *fake) VolumeList(_ context.Context, a filter.Args) (volume.ListResponse, error) {
	return volume.ListResponse{}, f.call("VolumeList", a)
}

func (f *fake) VolumeInspect(_ context.Context, name string) (volume.Volume, error) {
	return volume.Volume{Name: name}, f.call("VolumeInspect", name)
}

func (f *fake) VolumeRemove(_ context.Context, name string, force bool) error {
	return f.call("VolumeRemove", name, force)
}

func (f *fake) VolumesPrune(_ context.Context, a filter.Args) (volume.PruneReport, error) {
	return volume.PruneReport{SpaceReclaimed: 9}, f.call("VolumesPrune", a)
}

func (f *fake) NetworkList(_ context.Context, a filter.Args) ([]network.Summary, error) {
	return []network.Summary{{Network: network.Network{Name: "n", ID: "n1"}}}, f.call("NetworkList", a)
}

func (f *fake) NetworkInspect(_ context.Context, ref, scope string, verbose bool) (network.Inspect, error) {
	return network.Inspect{Network: network.Network{Name: ref}, Status: &network.Status{}}, f.call("NetworkInspect", ref, scope, verbose)
}

func (f *fake) NetworkCreate(_ context.Context, r network.CreateRequest) (network.CreateResponse, error) {
	return network.CreateResponse{ID: "n1"}, f.call("NetworkCreate", r.Name, r.Driver)
}

func (f *fake) NetworkRemove(_ context.Context, ref string) error {
	return f.call("NetworkRemove", ref)
}

func (f *fake) NetworkConnect(_ context.Context, ref string, r network.ConnectRequest) error {
	return f.call("NetworkConnect", ref, r.Container)
}

func (f *fake) NetworkDisconnect(_ context.Context, ref string, r network.DisconnectRequest) error {
	return f.call("NetworkDisconnect", ref, r.Container, r.Force)
}

func (f *fake) NetworksPrune(_ context.Context, a filter.Args) (network.PruneReport, error) {
	return network.PruneReport{NetworksDeleted: []string{"n"}}, f.call("NetworksPrune", a)
}

func (f *fake) Info(context.Context) (system.Info, error) {
	if f.panicOnInfo {
		panic("boom")
	}
	return system.Info{
		ID: "daemon", ContainerdCommit: system.Commit{ID: "abc"}, RegistryConfig: &registry.ServiceConfig{},
		Runtimes: map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "runc"}, Status: map[string]string{"k": "v"}}},
	}, f.call("Info")
}

func (f *fake) Version(context.Context) (system.VersionResponse, error) {
	return system.VersionResponse{Version: "0.1.0"}, f.call("Version")
}

func (f *fake) Events(ctx context.Context, o engine.EventsOptions, send func(event.Message) error) error {
	if err := f.call("Events", o.Filters); err != nil {
		return err
	}
	return f.events(ctx, o, send)
}

func (f *fake) GiveEvents(engine.GiveEventsOptions) (bool, error) { return false, nil }

func (f *fake) DiskUsage(_ context.Context, o sysinfo.DiskUsageOptions) (system.DiskUsage, error) {
	return f.usage, f.call("DiskUsage", o)
}

func (f *fake) Auth(_ context.Context, c registry.AuthConfig) (registry.AuthResponse, error) {
	return registry.AuthResponse{Status: "Login Succeeded"}, f.call("Auth", c.Username)
}

// handler is the API over the fake.
func handler(f *fake) http.Handler {
	return New(Options{Containers: f, Images: f, Volumes: f, Networks: f, System: f, Server: "Holdfast/test"})
}

// serve serves the API over a Unix socket and returns its path.
func serve(t *testing.T, f *fake) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler(f)}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return path
}

// dial returns a moby client of the served API, at a version or, if that is
// empty, at the negotiated one.
func dial(t *testing.T, path, version string) *client.Client {
	t.Helper()
	opts := []client.Opt{client.WithHost("unix://" + path)}
	if version != "" {
		opts = append(opts, client.WithAPIVersion(version))
	}
	c, err := client.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
