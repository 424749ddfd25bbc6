// SPDX-License-Identifier: Apache-2.0

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
	"holdfast/internal/engine/objects"
	"holdfast/internal/engine/sysinfo"
	"holdfast/internal/errs"
	"holdfast/internal/event"
	"holdfast/internal/filter"
	"holdfast/internal/shim/proto"
)

// Observer is an engine for commands while no daemon runs. It reads the files of the
// last daemon and of the shims, and passes users' requests for running containers
// to the shims. It takes no lock, writes no file, and restores and adopts nothing:
// its effects are performed and recorded by shims, where the next daemon finds
// them. A request that needs a daemon is refused with an error that says so.
//
// Several observers may run at the same time, and also while a daemon starts.
type Observer struct {
	*Engine
	refusedImages
	history History
	seen    *observedEvents
}

// History returns the events from since on for which match returns true, from the
// files of the last daemon's journal, ordered by time.
type History func(since time.Time, match func(event.Message) bool) ([]event.Message, error)

// NewObserver returns an observer without containers. Call Observe next. Of the
// dependencies it needs Store, Shims, Networks, Lives, Host and Log. It only reads
// from Networks.
func NewObserver(d Deps, history History, cfg *Config) *Observer {
	seen := newObservedEvents()
	d.Events, d.Volumes = seen, nil
	d.Lives = observedLives{d.Lives}
	e := New(d, cfg)
	e.images = observedImages{e: e}
	e.inspector.images = e.images
	e.observes.Store(true)
	return &Observer{Engine: e, history: history, seen: seen}
}

// Observe observes every container once, and follows those that run.
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
			found[i] = o.restorer.observe(ctx, a)
			return nil
		})
	}
	_ = g.Wait()
	for i, a := range actors {
		o.restorer.applyObserved(a, found[i])
		go a.run()
	}
	close(o.restored)
	go o.restorer.followRecords()
	return nil
}

// applyObserved is apply for an observer: it shows what a daemon would show, and
// changes nothing. It is called in the actor's loop or before the loop runs.
func (r *restorer) applyObserved(a *actor, f found) {
	a.rec = withLastRun(f.rec, &a.spec)
	for _, x := range f.rec.Execs {
		r.index.addExec(x.Exec, a.id)
	}
	a.enter(a.phase.Shown(f.verdict, f.seen, a.hasRun()))
	switch {
	case f.verdict == container.Retry:
		go r.observeUntilKnown(a)
	case f.verdict == container.Clear:
		// The shim has removed the container, except for what needs a daemon.
		if a.spec.Desired != container.DesiredRemoved {
			r.forget(a)
		}
	case f.shim != nil:
		r.adopter.attach(a, f.shim)
		r.replacer.stopper.resend(a, f.shim) // the shim that had them was killed
	case f.seen.Process && f.rec.Pid != 0: // not between two runs
		go r.watchObserved(a, f.rec)
		r.replacer.stopper.haltAllUnshimmed(a)
	case f.verdict == container.Lose:
		a.recordLostEnd(true)
	}
	a.publish()
	a.unpark()
}

// forget removes a container from the observer's memory, in the loop. Its files are
// the daemon's: the next daemon removes what the shim could not.
func (r *restorer) forget(a *actor) {
	r.index.remove(a.id, a.spec.Name)
	r.stats.forget(a.id)
	a.step(container.SawRemoving)
	a.waiters.removed(a.exit())
	close(a.quit)
}

// desiredOf is a container's desired state. If a user stopped the container through
// an observer, only the shim has recorded the stop, and not the spec.
func desiredOf(spec *container.Spec, rec proto.State) container.Desired {
	if rec.UserStopped && rec.Life == spec.Life && spec.Desired == container.DesiredRunning {
		return container.DesiredStopped
	}
	return spec.Desired
}

// recordUserStop persists a stop by a user that only the shim has recorded.
func (a *actor) recordUserStop() {
	if d := desiredOf(&a.spec, a.rec); d != a.spec.Desired {
		a.spec.Desired = d
		if err := a.save(); err != nil {
			a.log.Error("the stop by a user could not be recorded", "error", err)
		}
	}
}

// observedLives is the record of the daemons' lives for an observer: the recorded
// lives, followed by one that begins now and belongs to no daemon.
type observedLives struct{ Lives }

// List returns the lives. The last one belongs to no daemon.
func (l observedLives) List() []event.Life {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return append(slices.Clone(l.Lives.List()), event.Life{BootID: strings.TrimSpace(string(boot)), Start: time.Now()})
}

// needsDaemon is the error for a request that needs a daemon.
func needsDaemon(what string) error {
	return errs.Unavailable("%s needs the daemon, and none answers: start holdfastd", what)
}

// ContainerCreate needs the daemon.
func (o *Observer) ContainerCreate(context.Context, CreateOptions) (moby.CreateResponse, error) {
	return moby.CreateResponse{}, needsDaemon("creating a container")
}

// ContainerStart needs the daemon, which sets up the network and the mounts.
func (o *Observer) ContainerStart(context.Context, string) error {
	return needsDaemon("starting a container")
}

// ContainerRestart needs the daemon, as ContainerStart does.
func (o *Observer) ContainerRestart(context.Context, string, StopOptions) error {
	return needsDaemon("restarting a container")
}

// ContainerRemove needs the daemon, which owns the files.
func (o *Observer) ContainerRemove(context.Context, string, RemoveOptions) error {
	return needsDaemon("removing a container")
}

// ContainerRename needs the daemon, which writes the specs.
func (o *Observer) ContainerRename(context.Context, string, string) error {
	return needsDaemon("renaming a container")
}

// ContainerUpdate needs the daemon, which writes the specs.
func (o *Observer) ContainerUpdate(context.Context, string, moby.UpdateConfig) (moby.UpdateResponse, error) {
	return moby.UpdateResponse{}, needsDaemon("updating a container")
}

// ContainersPrune needs the daemon.
func (o *Observer) ContainersPrune(context.Context, filter.Args) (moby.PruneReport, error) {
	return moby.PruneReport{}, needsDaemon("removing containers")
}

// ContainerCommit needs the daemon, which has the image database open.
func (o *Observer) ContainerCommit(context.Context, string, CommitOptions) (string, error) {
	return "", needsDaemon("committing a container")
}

// ContainerExport needs the daemon, which mounts the root file system.
func (o *Observer) ContainerExport(context.Context, string, func() io.Writer) error {
	return needsDaemon("exporting a container")
}

// ContainerChanges needs the daemon, which mounts the image.
func (o *Observer) ContainerChanges(context.Context, string) ([]moby.FilesystemChange, error) {
	return nil, needsDaemon("comparing a container with its image")
}

// ContainerAttach attaches to a running container. Attaching before the start needs
// the daemon.
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

// refusedImages refuses requests for images, which need the daemon: only one process
// can have the image database open.
type refusedImages struct{}

func (refusedImages) ImagePull(context.Context, string, *ocispec.Platform, *registry.AuthConfig, bool, func(jsonstream.Message)) error {
	return needsDaemon("pulling an image")
}

func (refusedImages) ImagePush(context.Context, string, *ocispec.Platform, *registry.AuthConfig, bool, func(jsonstream.Message)) error {
	return needsDaemon("pushing an image")
}

func (refusedImages) ImageImport(context.Context, io.Reader, string, string, []string, *ocispec.Platform) (string, error) {
	return "", needsDaemon("importing an image")
}

func (refusedImages) ImageLoad(context.Context, io.Reader, []ocispec.Platform, func(jsonstream.Message)) error {
	return needsDaemon("loading images")
}

func (refusedImages) ImageSave(context.Context, []string, []ocispec.Platform, func() io.Writer) error {
	return needsDaemon("saving an image")
}

func (refusedImages) ImageList(context.Context, objects.ImageListOptions) ([]image.Summary, error) {
	return nil, needsDaemon("listing images")
}

func (refusedImages) ImageInspect(context.Context, string, *ocispec.Platform, bool) (objects.ImageInspected, error) {
	return objects.ImageInspected{}, needsDaemon("inspecting an image")
}

func (refusedImages) ImageHistory(context.Context, string, *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	return nil, needsDaemon("an image's history")
}

func (refusedImages) ImageAttestations(context.Context, string, *ocispec.Platform, []string, bool) ([]image.AttestationStatement, error) {
	return nil, needsDaemon("an image's attestations")
}

func (refusedImages) Distribution(context.Context, string, *registry.AuthConfig) (registry.DistributionInspect, error) {
	return registry.DistributionInspect{}, needsDaemon("asking a registry")
}

func (refusedImages) Search(context.Context, string, int, filter.Args, *registry.AuthConfig) ([]registry.SearchResult, error) {
	return nil, needsDaemon("searching a registry")
}

func (refusedImages) ImageRemovePlatforms(context.Context, string, []ocispec.Platform, bool) ([]image.DeleteResponse, error) {
	return nil, needsDaemon("removing an image")
}

func (refusedImages) ImageTag(context.Context, string, string) error {
	return needsDaemon("tagging an image")
}

func (refusedImages) ImageRemove(context.Context, string, bool, bool) ([]image.DeleteResponse, error) {
	return nil, needsDaemon("removing an image")
}

func (refusedImages) ImagesPrune(context.Context, filter.Args) (image.PruneReport, error) {
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

func (o *Observer) DiskUsage(context.Context, sysinfo.DiskUsageOptions) (system.DiskUsage, error) {
	return system.DiskUsage{}, needsDaemon("disk usage")
}

func (refusedImages) Auth(context.Context, registry.AuthConfig) (registry.AuthResponse, error) {
	return registry.AuthResponse{}, needsDaemon("logging in to a registry")
}

// DaemonStatus needs the daemon.
func (o *Observer) DaemonStatus(context.Context) (sysinfo.Status, error) {
	return sysinfo.Status{}, needsDaemon("its status")
}
