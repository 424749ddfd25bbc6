// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/api/types/container"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/api"
	"holdfast/internal/build"
	"holdfast/internal/config"
	"holdfast/internal/engine"
	"holdfast/internal/engine/oci"
	"holdfast/internal/event"
	"holdfast/internal/eventserver"
	"holdfast/internal/handoff"
	"holdfast/internal/handoff/systemd"
	"holdfast/internal/image"
	"holdfast/internal/network"
	"holdfast/internal/store"
	"holdfast/internal/swarm"
	"holdfast/internal/version"
	"holdfast/internal/volume"
)

// composed is the engine with its components and the API.
type composed struct {
	engine *engine.Engine
	log    *slog.Logger
	images *image.Store
	nets   *network.Manager
	builds *build.Builder
	swarm  *swarm.Node
	// liveRestore is the present value of the option.
	liveRestore atomic.Bool
	// buildConfig is what builds have to know of the present configuration.
	buildConfig atomic.Pointer[build.Config]
	journal     *event.Journal
	lives       *event.Lives
	handler     http.Handler
	host        oci.Host
	shim        string
	life        uint64 // number of this daemon's life
	// contentDir is the directory of the blobs, database the path of their database.
	contentDir, database string
	retired              bool
}

// start describes how a service begins. The zero value is a start after a stop
// or a crash.
type start struct {
	// handedOver: another daemon ran until now, so running containers are kept.
	handedOver bool
	// resume is the number of this process's own life, which continues after a
	// failed handover. 0 begins a new life.
	resume uint64
	// keeper holds descriptors that containers need when this process dies.
	keeper engine.Keeper
	// manager moves shims out of the daemon's unit; nil without systemd.
	manager *systemd.Manager
}

// control is what the API may do to the daemon's process.
type control interface {
	api.Reloader
	api.Upgrader
}

// compose builds the engine from its components, and the API on top of it.
func compose(ctx context.Context, cfg *config.Config, shim string, process control, log *slog.Logger, how start) (_ service, err error) {
	c := &composed{shim: shim, log: log}
	files, err := store.Open(cfg.DataRoot, cfg.ExecRoot)
	if err != nil {
		return nil, err
	}
	// The components do not depend on each other, so they are opened in
	// parallel.
	var opening errgroup.Group
	var ec *engine.Config
	var volumes *volume.Volumes
	opening.Go(func() (err error) {
		c.host = oci.Probe(ctx)
		ec, err = c.engineConfig(cfg)
		return err
	})
	opening.Go(func() (err error) {
		if c.lives, err = event.OpenLives(files.EventsDir()); err == nil {
			c.journal, err = event.Open(files.EventsDir(), event.Options{})
		}
		return err
	})
	opening.Go(func() (err error) {
		// The image store reports events through the engine, which is created
		// after it. Before that it reports none.
		c.images, err = image.Open(ctx, image.Options{
			Root: files.ImagesDir(), Snapshotter: cfg.StorageDriver, Registry: registryOf(cfg), Single: true, Log: log,
			OnEvent: func(action, id, name string, attrs map[string]string) { c.engine.ImageEvent(action, id, name, attrs) },
		})
		return err
	})
	opening.Go(func() (err error) {
		if c.nets, err = network.Open(ctx, networkOptions(cfg, files.NetworksDir(), log)); err == nil {
			volumes, err = volume.Open(files.VolumesDir(), volume.Options{InUse: func(name string) []string { return c.engine.VolumeUsers(name) }})
		}
		return err
	})
	err = opening.Wait()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.closeOpened())
		}
	}()
	if err != nil {
		return nil, err
	}
	id, err := files.DaemonID()
	if err != nil {
		return nil, err
	}
	if err := c.live(how.resume); err != nil {
		return nil, err
	}
	c.reportDamage(files, volumes)
	shims := newShims(version.Version, how.manager, log)
	if err := c.newBeside(cfg, shims, log); err != nil {
		return nil, err
	}
	c.engine = engine.New(engine.Deps{
		Store: files, Shims: shims, Images: c.images, Networks: stepNetworks{c.nets, c.builds}, Volumes: volumes,
		Events: c.journal, Lives: c.lives, Host: c.host, Log: log, Release: version.Version, ID: id, HandedOver: how.handedOver, Keeper: how.keeper,
		Builds: c.builds, Swarm: c.swarm, EventServer: eventserver.New(eventserver.Options{Journal: files.EventsDir(), RunDir: cfg.ExecRoot, Started: shims.place}),
	}, ec)
	if err := c.engine.Load(); err != nil {
		return nil, err
	}
	e := c.engine
	c.handler = api.New(api.Options{
		Containers: e, Images: e, Volumes: e, Networks: e, System: e, Daemon: e, Builds: c.builds, Swarm: c.swarm, Reload: process, Upgrade: process,
		Log: log, MinVersion: cfg.MinAPIVersion,
		Server:       fmt.Sprintf("Holdfast/%s (linux)", version.Version),
		Experimental: e.Experimental, BuilderVersion: builderVersion(c.builds),
	})
	return c, nil
}

// reportDamage logs which records could not be used, and what was done with them.
func (c *composed) reportDamage(files *store.Store, volumes *volume.Volumes) {
	if path := files.DamagedID(); path != "" {
		c.log.Error("the engine's ID was damaged: it was set aside, and a new one made", "path", path)
	}
	for _, path := range c.journal.Damaged() {
		c.log.Warn("the journal of events is damaged: events are missing", "path", path)
	}
	if path := c.lives.SetAside(); path != "" {
		c.log.Warn("the record of the daemon's lives was damaged: it was set aside, and a new one begun", "path", path)
	}
	for _, err := range volumes.Broken() {
		c.log.Error("a volume's record can't be used: the volume stays as it is but can't be managed", "error", err)
	}
}

// closeOpened closes the opened components of a service whose construction
// failed.
func (c *composed) closeOpened() error {
	var errs []error
	if c.images != nil {
		errs = append(errs, c.images.Close())
	}
	if c.journal != nil {
		errs = append(errs, c.journal.Close())
	}
	return errors.Join(errs...)
}

// live begins this daemon's life in the record, or resumes it.
func (c *composed) live(resume uint64) error {
	if c.life = resume; resume != 0 && c.lives.Resume(resume) == nil {
		return nil
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	life, err := c.lives.Begin(event.Life{
		Release: version.Version, Pid: os.Getpid(), BootID: strings.TrimSpace(string(boot)), Start: time.Now().UTC(),
	})
	c.life = life.Number
	return err
}

func (c *composed) Handler() http.Handler { return c.handler }

func (c *composed) Restore(ctx context.Context) error {
	err := c.engine.Restore(ctx)
	if err != nil {
		return err
	}
	go c.engine.WarnOfRuntimes(context.WithoutCancel(ctx))
	if err := c.builds.Resume(ctx); err != nil {
		c.log.Error("builds that an earlier daemon has begun can't go on", "error", err)
	}
	c.swarm.Serve(api.ForTasks(c.handler, c.engine, c.journal, c.nets))
	if err := c.swarm.Resume(ctx); err != nil {
		c.log.Error("the swarm process can't be used yet: tasks run on, and it is tried again", "error", err)
	}
	return nil
}

func (c *composed) Running() int { return c.engine.Running() }

func (c *composed) Shutdown(ctx context.Context, hostToo bool) error {
	if hostToo || !c.liveRestore.Load() {
		// The swarm must not take the end of its tasks for a failure of theirs.
		c.swarm.Stop()
	}
	stopped := c.engine.Shutdown(ctx, hostToo)
	c.builds.Stop(stopped)
	c.nets.Leave()
	return c.lives.End(event.EndClean, time.Now().UTC(), stopped)
}

func (c *composed) Life() uint64   { return c.life }
func (c *composed) Busy() []string { return c.engine.Busy() }

// Retire closes the files that only one process may have open.
func (c *composed) Retire(ctx context.Context) ([]engine.PendingClient, error) {
	left := c.swarm.Close()
	clients, err := c.engine.Retire(ctx)
	c.retired = true
	return clients, errors.Join(err, left, c.builds.Close(), c.journal.Follow(), c.lives.End(event.EndHandover, time.Now().UTC(), false), c.nets.Close(), c.images.Close())
}

func (c *composed) TakeClients(clients []engine.PendingClient) error {
	return c.engine.TakeClients(clients)
}

func (c *composed) Close() error {
	if c.retired {
		c.engine.Leave()
		return c.journal.Close()
	}
	return errors.Join(c.swarm.Close(), c.builds.Close(), c.nets.Close(), c.images.Close(), c.journal.Close())
}

// Reloaders apply the options that may change while the daemon runs.
func (c *composed) Reloaders() []config.Reloader {
	return []config.Reloader{
		config.NewReloader("registries", func(_ context.Context, old, next *config.Config) (func(), func(), error) {
			if err := c.images.SetRegistry(registryOf(next)); err != nil {
				return nil, nil, err
			}
			return nil, func() { _ = c.images.SetRegistry(registryOf(old)) }, nil
		}),
		config.NewReloader("engine", func(_ context.Context, _, next *config.Config) (func(), func(), error) {
			ec, err := c.engineConfig(next)
			if err != nil {
				return nil, nil, err
			}
			return func() {
				c.engine.SetConfig(ec)
				c.buildConfig.Store(c.buildConfigOf(next))
				c.liveRestore.Store(next.LiveRestore)
				go c.engine.WarnOfRuntimes(context.Background())
			}, nil, nil
		}),
	}
}

func registryOf(cfg *config.Config) image.Registry {
	return image.Registry{
		Mirrors: cfg.RegistryMirrors, Insecure: cfg.InsecureRegistries, TokenHosts: cfg.RegistryTokenHosts,
		MaxDownloads: cfg.MaxConcurrentDownloads, MaxAttempts: cfg.MaxDownloadAttempts, MaxUploads: cfg.MaxConcurrentUploads,
	}
}

func networkOptions(cfg *config.Config, root string, log *slog.Logger) network.Options {
	o := network.Options{
		Root: root, ExecRoot: cfg.ExecRoot, BridgeName: cfg.Bridge,
		BIP: cfg.BIP, BIP6: cfg.BIP6, FixedCIDR: cfg.FixedCIDR, FixedCIDRv6: cfg.FixedCIDRv6,
		MTU: cfg.MTU, ICC: cfg.ICC, IPMasq: cfg.IPMasq, IPForward: cfg.IPForward, IPForwardNoDrop: cfg.IPForwardNoDrop, IPv6: cfg.IPv6,
		Iptables: cfg.Iptables, Ip6tables: cfg.Ip6tables, UserlandProxy: cfg.UserlandProxy,
		DefaultBindIP: cfg.DefaultBindIP, AllowDirect: cfg.AllowDirectRouting, NetworkOpts: cfg.NetworkOpts, Log: log,
		Alive: handoff.Held,
	}
	if cfg.DefaultGateway.IsValid() {
		o.DefaultGateway = cfg.DefaultGateway.String()
	}
	if cfg.DefaultGatewayV6.IsValid() {
		o.DefaultGatewayV6 = cfg.DefaultGatewayV6.String()
	}
	for _, p := range cfg.AddressPools {
		o.Pools = append(o.Pools, network.Pool{Base: p.Base, Size: p.Size})
	}
	return o
}

// engineConfig is the engine's configuration, with the values that depend on
// this host.
func (c *composed) engineConfig(cfg *config.Config) (*engine.Config, error) {
	d := oci.Defaults{
		CgroupDriver: cfg.CgroupDriver(), CgroupParent: cfg.CgroupParent,
		IpcMode: moby.IpcMode(cfg.IpcMode), CgroupnsMode: moby.CgroupnsMode(cfg.CgroupnsMode), ShmSize: cfg.ShmSize,
		LogConfig:       moby.LogConfig{Type: cfg.LogDriver, Config: cfg.LogOpts},
		NoNewPrivileges: cfg.NoNewPrivileges, Init: cfg.Init, InitPath: cfg.InitPath,
		Runtime: cfg.DefaultRuntime, Runtimes: []string{config.StockRuntime, config.ShimRuntime},
	}
	if d.CgroupDriver == "" {
		d.CgroupDriver = c.host.DefaultDriver()
	}
	for name := range cfg.Runtimes {
		if name != config.StockRuntime {
			d.Runtimes = append(d.Runtimes, name)
		}
	}
	if len(cfg.Ulimits) > 0 {
		d.Ulimits = map[string]*moby.Ulimit{}
		for name, u := range cfg.Ulimits {
			d.Ulimits[name] = &units.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard}
		}
	}
	var err error
	if d.SeccompProfile, err = seccompProfile(cfg); err != nil {
		return nil, fmt.Errorf("seccomp-profile: %w", err)
	}
	return &engine.Config{Config: cfg, ShimPath: c.shim, Defaults: d}, nil
}
