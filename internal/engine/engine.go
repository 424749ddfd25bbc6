// SPDX-License-Identifier: Apache-2.0

// Package engine is the daemon's core. It has one actor per container, which
// passes users' requests and shims' reports to the lifecycle of package container
// and carries out the resulting actions, through the small interfaces in
// ports.go. It owns no file format, no kernel object and no HTTP. Nothing that a
// running container needs passes through it.
package engine

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"holdfast/internal/config"
	"holdfast/internal/container"
	"holdfast/internal/engine/objects"
	"holdfast/internal/engine/oci"
	"holdfast/internal/engine/sysinfo"
)

// Config is the daemon's configuration together with values detected on the host.
// It is immutable; a reload replaces it. New values apply to objects that are
// created afterwards, except LiveRestore, Labels and ShutdownTimeout.
type Config struct {
	*config.Config
	ShimPath string       // of the shim's binary
	Defaults oci.Defaults // of containers
}

// settings is the daemon's present configuration. A reload replaces it.
type settings = atomic.Pointer[Config]

// runtimes returns the OCI runtimes by name, including the built-in ones.
func (c *Config) runtimes() map[string]config.Runtime {
	all := map[string]config.Runtime{
		config.StockRuntime: {Path: config.StockRuntime}, config.ShimRuntime: {Path: config.StockRuntime},
	}
	maps.Copy(all, c.Runtimes)
	return all
}

// Deps are the engine's dependencies.
type Deps struct {
	Store    Store
	Shims    Shims
	Images   Images
	Networks Networks
	Volumes  Volumes
	Events   Events
	Lives    Lives
	Host     oci.Host
	Log      *slog.Logger
	Release  string
	ID       string // of this daemon's data root
	// HandedOver: the predecessor handed over to this daemon. Running containers
	// are adopted even if live restore is off.
	HandedOver bool
	// Keeper may be nil.
	Keeper Keeper
	// EventServer may be nil.
	EventServer EventServer
	// Builds may be nil.
	Builds sysinfo.Builds
	// Swarm may be nil.
	Swarm Swarm
}

// Engine is the daemon's core. Its exported methods, together with those of the
// embedded types, implement the backends that the API's packages declare. A container
// is given by name, ID or ID prefix.
type Engine struct {
	*objects.Images
	*objects.Volumes
	*objects.Networks
	*sysinfo.System
	*trees
	*creator
	*inspector
	*eventStreams
	*execs
	*waits
	*progress
	*buildSteps

	store    Store
	shims    Shims
	images   Images
	networks Networks
	volumes  Volumes
	events   Events
	lives    Lives
	keeper   Keeper         // may be nil
	builds   sysinfo.Builds // may be nil
	host     oci.Host
	log      *slog.Logger
	release  string
	id       string
	config   *settings

	// The parts that actors and requests share. Each has only the fields that it
	// needs. A part calls those above it, and none below.
	index     *index
	journal   *journal
	names     *nameService
	runtimes  *runtimes
	stats     *statsHub
	records   *records
	effects   *hostEffects
	scheduler *scheduler
	losses    *losses
	stopper   *stopper
	endpoints *endpoints
	attached  *attachments
	adopter   *adopter
	replacer  *replacer
	restorer  *restorer
}

// New returns an engine without containers. Call Load and then Restore.
func New(d Deps, cfg *Config) *Engine {
	e := &Engine{
		store: d.Store, shims: d.Shims, images: d.Images, networks: d.Networks,
		volumes: d.Volumes, events: d.Events, lives: d.Lives, keeper: d.Keeper, builds: d.Builds, host: d.Host, log: d.Log,
		release: d.Release, id: d.ID,
		progress: newProgress(d.HandedOver),
		config:   &settings{},
	}
	e.config.Store(cfg)
	e.makeParts(d)
	e.makeBackends(d)
	return e
}

// makeParts makes the shared parts.
func (e *Engine) makeParts(d Deps) {
	p := e.progress
	e.index = newIndex(p)
	e.journal = &journal{d.Events, d.Networks, d.Log}
	e.names = newNameService(p, d, e.index)
	e.runtimes = &runtimes{e.config, d.Host}
	e.stats = &statsHub{host: d.Host}
	e.records = &records{p, d.Store, d.Shims, d.Lives, d.Log}
	e.effects = newEffects(e)
	e.scheduler = &scheduler{p, e.index}
	e.losses = &losses{e.scheduler}
	e.stopper = &stopper{e.losses}
	e.attached = &attachments{d.Swarm, d.Networks}
	e.endpoints = &endpoints{d.Store, d.Networks, e.index, e.journal, e.names, e.attached}
	e.adopter = &adopter{e.config, e.losses, e.endpoints}
	e.replacer = &replacer{p, e.adopter, e.losses, e.stopper}
	e.restorer = &restorer{
		progress: p, config: e.config, store: d.Store, shims: d.Shims, images: d.Images, networks: d.Networks, volumes: d.Volumes,
		host: d.Host, log: d.Log, index: e.index, journal: e.journal, names: e.names, records: e.records, effects: e.effects,
		scheduler: e.scheduler, losses: e.losses, stopper: e.stopper, adopter: e.adopter, replacer: e.replacer, stats: e.stats,
	}
}

// makeBackends makes the embedded types that answer requests.
func (e *Engine) makeBackends(d Deps) {
	p := e.progress
	e.trees = &trees{p, d.Store, d.Images, e.index, e.journal, e.effects.mounter, d.Log}
	e.restorer.trees = e.trees
	e.inspector = &inspector{p, d.Store, d.Images, d.Networks, d.Host, e.index, e.records}
	e.eventStreams = &eventStreams{progress: p, events: d.Events, server: d.EventServer, log: d.Log}
	e.creator = &creator{
		progress: p, config: e.config, store: d.Store, images: d.Images, networks: d.Networks, volumes: d.Volumes,
		host: d.Host, hostNow: e.hostNow, log: d.Log, index: e.index, journal: e.journal, names: e.names, mounter: e.effects.mounter,
		attached: e.attached,
		newActor: func(spec *container.Spec, d asked) *actor { return newActor(e, spec, d) },
	}
	e.execs = &execs{e.index, e.effects.bundler}
	e.waits = &waits{e.index}
	e.buildSteps = &buildSteps{e.index, e.effects.files, e.names}
	e.System = newSystem(e)
	emit := func(typ, action, id string, attributes map[string]string) {
		e.journal.emit(typ, action, id, attributes, time.Now())
	}
	e.Images = objects.NewImages(d.Images, users{e}, emit)
	e.Volumes = objects.NewVolumes(d.Volumes, users{e}, emit, d.Log)
	e.Networks = objects.NewNetworks(d.Networks, users{e}, emit)
}

// SetConfig replaces the configuration and journals the reload. Existing
// containers keep the options that they were created with.
func (e *Engine) SetConfig(cfg *Config) {
	e.config.Store(cfg)
	name, _ := os.Hostname()
	list := func(v any) string {
		b, _ := json.Marshal(v) // lists and maps of strings
		if string(b) == "null" {
			return "[]"
		}
		return string(b)
	}
	e.journal.emit("daemon", "reload", e.id, map[string]string{
		"name": name, "live-restore": strconv.FormatBool(cfg.LiveRestore), "debug": strconv.FormatBool(cfg.Debug),
		"labels": list(cfg.Labels), "registry-mirrors": list(cfg.RegistryMirrors), "insecure-registries": list(cfg.InsecureRegistries),
		"shutdown-timeout": strconv.Itoa(cfg.ShutdownTimeout), "max-concurrent-downloads": strconv.Itoa(cfg.MaxConcurrentDownloads),
		"max-download-attempts": strconv.Itoa(cfg.MaxDownloadAttempts), "default-runtime": cfg.DefaultRuntime, "runtimes": list(cfg.runtimes()),
	}, time.Now())
}

// activeKeeper returns the Keeper; nil if there is none or the engine only
// observes.
func (e *Engine) activeKeeper() Keeper {
	if e.observes.Load() {
		return nil
	}
	return e.keeper
}

// find is index.findForChange.
func (e *Engine) find(ctx context.Context, ref string) (*actor, error) {
	return e.index.findForChange(ctx, ref)
}

// Experimental reports whether experimental features are on.
func (e *Engine) Experimental() bool { return e.config.Load().Experimental }
