package engine

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	mobynet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/container"
	"holdfast/internal/event"
	"holdfast/internal/filter"
	"holdfast/internal/shim/proto"
)

// Observer is an engine where no daemon lives. It reads the files that the last
// daemon and the shims wrote, asks the shims, and tells them what users want of
// running containers. It takes no lock, writes no file, restores and adopts
// nothing: whatever it does is done by a shim, and the next daemon finds it
// there. What only a daemon can do is refused by name.
//
// Several may live at once, and one may overlap with a daemon that starts.
type Observer struct {
	*Engine
	history History
	seen    *observedEvents
}

// History reads the events from since on that match, from the files of the
// last daemon's journal and in the order of their time.
type History func(since time.Time, match func(event.Message) bool) ([]event.Message, error)

// NewObserver makes an observer that knows nothing yet; Observe follows. Of the
// parts it needs Store, Shims, Networks, Lives, Host and Log. The networks are
// asked for what they know, and for nothing else.
func NewObserver(d Deps, history History, cfg *Config) *Observer {
	seen := newObservedEvents()
	d.Events, d.Volumes = seen, nil
	d.Lives = observedLives{d.Lives}
	e := New(d, cfg)
	e.images = observedImages{e: e}
	e.observes.Store(true)
	return &Observer{e, history, seen}
}

// Observe looks at every container once and follows those that live.
func (o *Observer) Observe(ctx context.Context) error {
	if err := o.Load(); err != nil {
		return err
	}
	actors := o.index.all()
	found := make([]found, len(actors))
	var g errgroup.Group
	g.SetLimit(32)
	for i, a := range actors {
		g.Go(func() error {
			found[i] = o.look(ctx, a)
			return nil
		})
	}
	_ = g.Wait()
	for i, a := range actors {
		o.show(a, found[i])
		go a.loop()
	}
	close(o.restored)
	return nil
}

// show makes of what was seen what a daemon would show of it, before the
// actor's loop runs or within it.
func (e *Engine) show(a *actor, f found) {
	a.rec = f.rec
	for _, x := range f.rec.Execs {
		e.index.addExec(x.Exec, a.id)
	}
	switch {
	case f.verdict == container.Retry:
		a.state = container.Unknown
		go a.retry()
	case f.verdict == container.Clear:
		// Removed but for what a daemon does about it.
		if a.spec.Desired != container.DesiredRemoved {
			e.index.remove(a.id, a.spec.Name)
		}
		a.state = container.Removing
	case f.shim != nil:
		a.adopt(f.shim)
	case f.process:
		a.state = stateOf(f.rec)
		if !a.state.Alive() {
			a.state = container.Running
		}
		go a.watchProcess(f.rec)
	case f.verdict == container.Lose:
		a.lose()
		a.state = container.Exited
	default:
		a.state = container.Settle(a.hasRun())
	}
	a.publish()
}

// vanish is the end of a container with --rm, in the loop: for who asks here it
// is gone, and the next daemon takes away what the shim could not.
func (a *actor) vanish() {
	a.e.index.remove(a.id, a.spec.Name)
	a.e.stats.forget(a.id)
	a.to(container.Removing)
	for _, w := range a.waiters {
		w.ch <- waitResponse(a.exit())
	}
	a.waiters = nil
	close(a.quit)
}

// heeded is what is wanted of a container when its shim was told of a wish that
// no daemon could write down.
func heeded(spec *container.Spec, rec proto.State) container.Desired {
	if rec.UserStopped && rec.Life == spec.Life && spec.Desired == container.DesiredRunning {
		return container.DesiredStopped
	}
	return spec.Desired
}

// heed writes such a wish down.
func (a *actor) heed() {
	if d := heeded(&a.spec, a.rec); d != a.spec.Desired {
		a.spec.Desired = d
		if err := a.save(); err != nil {
			a.log.Error("the stop by a user could not be recorded", "error", err)
		}
	}
}

// observedLives is the record of the daemon's lives as an observer has it:
// after the last one the present moment, with no daemon in it.
type observedLives struct{ Lives }

// List returns the lives; the last one is nobody's.
func (l observedLives) List() []event.Life {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return append(slices.Clone(l.Lives.List()), event.Life{BootID: strings.TrimSpace(string(boot)), Start: time.Now()})
}

// needsDaemon is the refusal of what an observer can't do.
func needsDaemon(what string) error {
	return unavailable("%s needs the daemon, and none answers: start holdfastd", what)
}

// ContainerCreate is the daemon's.
func (o *Observer) ContainerCreate(context.Context, CreateOptions) (moby.CreateResponse, error) {
	return moby.CreateResponse{}, needsDaemon("creating a container")
}

// ContainerStart is the daemon's: it makes the network and the mounts.
func (o *Observer) ContainerStart(context.Context, string) error {
	return needsDaemon("starting a container")
}

// ContainerRestart is the daemon's, as its second half is.
func (o *Observer) ContainerRestart(context.Context, string, StopOptions) error {
	return needsDaemon("restarting a container")
}

// ContainerRemove is the daemon's: it owns the files.
func (o *Observer) ContainerRemove(context.Context, string, RemoveOptions) error {
	return needsDaemon("removing a container")
}

// ContainerRename is the daemon's: names are in files that it writes.
func (o *Observer) ContainerRename(context.Context, string, string) error {
	return needsDaemon("renaming a container")
}

// ContainerUpdate is the daemon's: limits are in files that it writes.
func (o *Observer) ContainerUpdate(context.Context, string, moby.UpdateConfig) (moby.UpdateResponse, error) {
	return moby.UpdateResponse{}, needsDaemon("updating a container")
}

// ContainersPrune is the daemon's.
func (o *Observer) ContainersPrune(context.Context, filter.Args) (moby.PruneReport, error) {
	return moby.PruneReport{}, needsDaemon("removing containers")
}

// ContainerCommit is the daemon's, which has the images.
func (o *Observer) ContainerCommit(context.Context, string, CommitOptions) (string, error) {
	return "", needsDaemon("committing a container")
}

// ContainerExport is the daemon's, which has the root file system mounted.
func (o *Observer) ContainerExport(context.Context, string, func() io.Writer) error {
	return needsDaemon("exporting a container")
}

// ContainerChanges is the daemon's, which has the image.
func (o *Observer) ContainerChanges(context.Context, string) ([]moby.FilesystemChange, error) {
	return nil, needsDaemon("comparing a container with its image")
}

// ContainerAttach attaches to what runs. A client that waits for a start would
// wait for a daemon.
func (o *Observer) ContainerAttach(ctx context.Context, ref string, opts AttachOptions) error {
	a, err := o.index.find(ref)
	if err != nil {
		return err
	}
	if v := a.view.Load(); opts.Stream && !v.state.Alive() {
		return needsDaemon(fmt.Sprintf("attaching to container %s before it is started", v.spec.Name))
	}
	return o.Engine.ContainerAttach(ctx, ref, opts)
}

// The images are the daemon's: no two processes may have their database open.

func (o *Observer) ImagePull(context.Context, string, *ocispec.Platform, *registry.AuthConfig, bool, func(jsonstream.Message)) error {
	return needsDaemon("pulling an image")
}

func (o *Observer) ImagePush(context.Context, string, *ocispec.Platform, *registry.AuthConfig, bool, func(jsonstream.Message)) error {
	return needsDaemon("pushing an image")
}

func (o *Observer) ImageImport(context.Context, io.Reader, string, string, []string, *ocispec.Platform) (string, error) {
	return "", needsDaemon("importing an image")
}

func (o *Observer) ImageLoad(context.Context, io.Reader, []ocispec.Platform, func(jsonstream.Message)) error {
	return needsDaemon("loading images")
}

func (o *Observer) ImageSave(context.Context, []string, []ocispec.Platform, func() io.Writer) error {
	return needsDaemon("saving an image")
}

func (o *Observer) ImageList(context.Context, ImageListOptions) ([]image.Summary, error) {
	return nil, needsDaemon("listing images")
}

func (o *Observer) ImageInspect(context.Context, string, *ocispec.Platform, bool) (image.InspectResponse, error) {
	return image.InspectResponse{}, needsDaemon("inspecting an image")
}

func (o *Observer) ImageHistory(context.Context, string, *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	return nil, needsDaemon("an image's history")
}

func (o *Observer) ImageTag(context.Context, string, string) error {
	return needsDaemon("tagging an image")
}

func (o *Observer) ImageRemove(context.Context, string, bool, bool) ([]image.DeleteResponse, error) {
	return nil, needsDaemon("removing an image")
}

func (o *Observer) ImagesPrune(context.Context, filter.Args) (image.PruneReport, error) {
	return image.PruneReport{}, needsDaemon("removing images")
}

func (o *Observer) VolumeCreate(context.Context, volume.CreateRequest) (volume.Volume, error) {
	return volume.Volume{}, needsDaemon("creating a volume")
}

func (o *Observer) VolumeList(context.Context, filter.Args) (volume.ListResponse, error) {
	return volume.ListResponse{}, needsDaemon("listing volumes")
}

func (o *Observer) VolumeInspect(context.Context, string) (volume.Volume, error) {
	return volume.Volume{}, needsDaemon("inspecting a volume")
}

func (o *Observer) VolumeRemove(context.Context, string, bool) error {
	return needsDaemon("removing a volume")
}

func (o *Observer) VolumesPrune(context.Context, filter.Args) (volume.PruneReport, error) {
	return volume.PruneReport{}, needsDaemon("removing volumes")
}

func (o *Observer) NetworkCreate(context.Context, mobynet.CreateRequest) (mobynet.CreateResponse, error) {
	return mobynet.CreateResponse{}, needsDaemon("creating a network")
}

func (o *Observer) NetworkList(context.Context, filter.Args) ([]mobynet.Summary, error) {
	return nil, needsDaemon("listing networks")
}

func (o *Observer) NetworkInspect(context.Context, string, string, bool) (mobynet.Inspect, error) {
	return mobynet.Inspect{}, needsDaemon("inspecting a network")
}

func (o *Observer) NetworkRemove(context.Context, string) error {
	return needsDaemon("removing a network")
}

func (o *Observer) NetworkConnect(context.Context, string, mobynet.ConnectRequest) error {
	return needsDaemon("connecting a container to a network")
}

func (o *Observer) NetworkDisconnect(context.Context, string, mobynet.DisconnectRequest) error {
	return needsDaemon("disconnecting a container from a network")
}

func (o *Observer) NetworksPrune(context.Context, filter.Args) (mobynet.PruneReport, error) {
	return mobynet.PruneReport{}, needsDaemon("removing networks")
}

func (o *Observer) Info(context.Context) (system.Info, error) {
	return system.Info{}, needsDaemon("information about the daemon")
}

func (o *Observer) Version(context.Context) (system.VersionResponse, error) {
	return system.VersionResponse{}, needsDaemon("the daemon's version")
}

func (o *Observer) DiskUsage(context.Context, DiskUsageOptions) (system.DiskUsage, error) {
	return system.DiskUsage{}, needsDaemon("disk usage")
}

func (o *Observer) Auth(context.Context, registry.AuthConfig) (registry.AuthResponse, error) {
	return registry.AuthResponse{}, needsDaemon("logging in to a registry")
}

// DaemonStatus is of a daemon that lives.
func (o *Observer) DaemonStatus(context.Context) (Status, error) {
	return Status{}, needsDaemon("its status")
}
