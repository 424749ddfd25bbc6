package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/api/types/container"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/api"
	daemonapi "holdfast/internal/api/daemon"
	"holdfast/internal/config"
	"holdfast/internal/engine"
	"holdfast/internal/engine/oci"
	"holdfast/internal/event"
	"holdfast/internal/image"
	"holdfast/internal/network"
	"holdfast/internal/network/ipam"
	"holdfast/internal/store"
	"holdfast/internal/version"
	"holdfast/internal/volume"
)

// composed is the engine with its parts, behind the API.
type composed struct {
	engine  *engine.Engine
	images  *image.Store
	nets    *network.Manager
	journal *event.Journal
	lives   *event.Lives
	handler http.Handler
	host    oci.Host
	shim    string
	life    uint64 // number of this daemon's
	retired bool
}

// start is how a service begins, if not after a stop or a crash.
type start struct {
	// handedOver: another daemon lived until now; what runs is kept.
	handedOver bool
	// resume is the number of this process's own life that goes on, after a
	// handover that failed; 0 begins a new one.
	resume uint64
	// keeper keeps what containers need beyond this process.
	keeper engine.Keeper
}

// control is what the API may do with the daemon's process.
type control interface {
	daemonapi.Reloader
	daemonapi.Upgrader
}

// compose puts the engine together from its parts and the API on top of it.
func compose(ctx context.Context, cfg *config.Config, shim string, process control, log *slog.Logger, how start) (_ service, err error) {
	c := &composed{shim: shim}
	files, err := store.Open(cfg.DataRoot, cfg.ExecRoot)
	if err != nil {
		return nil, err
	}
	// None of the parts needs another: they are opened side by side.
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
		// The image store tells of what it did through the engine, which is made
		// after it; nothing is told before.
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
	for _, err := range volumes.Broken() {
		log.Error("a volume's record can't be used: the volume is left as it is and can't be managed", "error", err)
	}
	c.engine = engine.New(engine.Deps{
		Store: files, Shims: shims{release: version.Version}, Images: c.images, Networks: c.nets, Volumes: volumes,
		Events: c.journal, Lives: c.lives, Host: c.host, Log: log, Release: version.Version, ID: id, HandedOver: how.handedOver, Keeper: how.keeper,
	}, ec)
	if err := c.engine.Load(); err != nil {
		return nil, err
	}
	e := c.engine
	c.handler = api.New(api.Options{
		Containers: e, Images: e, Volumes: e, Networks: e, System: e, Daemon: e, Reload: process, Upgrade: process,
		Log: log, MinVersion: cfg.MinAPIVersion,
		Server:       fmt.Sprintf("Holdfast/%s (linux)", version.Version),
		Experimental: e.Experimental,
	})
	return c, nil
}

// closeOpened closes what was opened of a service that did not come about.
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

// live begins this daemon's life in the record, or goes on with it.
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

func (c *composed) Handler() http.Handler             { return c.handler }
func (c *composed) Restore(ctx context.Context) error { return c.engine.Restore(ctx) }

func (c *composed) Running() int { return c.engine.Running() }

func (c *composed) Shutdown(ctx context.Context) error {
	c.engine.Shutdown(ctx)
	c.nets.Leave()
	return c.lives.End(event.EndClean, time.Now().UTC())
}

func (c *composed) Life() uint64   { return c.life }
func (c *composed) Busy() []string { return c.engine.Busy() }

// Retire closes what only one process may have open.
func (c *composed) Retire(ctx context.Context) ([]engine.PendingClient, error) {
	clients, err := c.engine.Retire(ctx)
	c.retired = true
	return clients, errors.Join(err, c.journal.Follow(), c.lives.End(event.EndHandover, time.Now().UTC()), c.nets.Close(), c.images.Close())
}

func (c *composed) TakeClients(clients []engine.PendingClient) error {
	return c.engine.TakeClients(clients)
}

func (c *composed) Close() error {
	if c.retired {
		c.engine.Leave()
		return c.journal.Close()
	}
	return errors.Join(c.nets.Close(), c.images.Close(), c.journal.Close())
}

// Reloaders take what may change while the daemon runs.
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
			return func() { c.engine.SetConfig(ec) }, nil, nil
		}),
	}
}

func registryOf(cfg *config.Config) image.Registry {
	return image.Registry{
		Mirrors: cfg.RegistryMirrors, Insecure: cfg.InsecureRegistries,
		MaxDownloads: cfg.MaxConcurrentDownloads, MaxAttempts: cfg.MaxDownloadAttempts, MaxUploads: cfg.MaxConcurrentUploads,
	}
}

func networkOptions(cfg *config.Config, root string, log *slog.Logger) network.Options {
	o := network.Options{
		Root: root, ExecRoot: cfg.ExecRoot, BridgeName: cfg.Bridge,
		BIP: cfg.BIP, BIP6: cfg.BIP6, FixedCIDR: cfg.FixedCIDR, FixedCIDRv6: cfg.FixedCIDRv6,
		MTU: cfg.MTU, ICC: cfg.ICC, IPMasq: cfg.IPMasq, IPForward: cfg.IPForward, IPv6: cfg.IPv6,
		Iptables: cfg.Iptables, Ip6tables: cfg.Ip6tables, UserlandProxy: cfg.UserlandProxy,
		DefaultBindIP: cfg.DefaultBindIP, AllowDirect: cfg.AllowDirectRouting, NetworkOpts: cfg.NetworkOpts, Log: log,
	}
	if cfg.DefaultGateway.IsValid() {
		o.DefaultGateway = cfg.DefaultGateway.String()
	}
	if cfg.DefaultGatewayV6.IsValid() {
		o.DefaultGatewayV6 = cfg.DefaultGatewayV6.String()
	}
	for _, p := range cfg.AddressPools {
		o.Pools = append(o.Pools, ipam.Pool{Base: p.Base, Size: p.Size})
	}
	return o
}

// engineConfig adds to the configuration what it means on this host.
func (c *composed) engineConfig(cfg *config.Config) (*engine.Config, error) {
	d := oci.Defaults{
		CgroupDriver: cfg.CgroupDriver(), CgroupParent: cfg.CgroupParent,
		IpcMode: moby.IpcMode(cfg.IpcMode), CgroupnsMode: moby.CgroupnsMode(cfg.CgroupnsMode), ShmSize: cfg.ShmSize,
		LogConfig:       moby.LogConfig{Type: cfg.LogDriver, Config: cfg.LogOpts},
		NoNewPrivileges: cfg.NoNewPrivileges, Init: cfg.Init, InitPath: cfg.InitPath,
		Runtime: cfg.DefaultRuntime, Runtimes: []string{config.StockRuntime},
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
	switch p := cfg.SeccompProfile; p {
	case "", "builtin", "unconfined":
		d.SeccompProfile = p
	default:
		text, err := os.ReadFile(filepath.Clean(p))
		if err != nil {
			return nil, fmt.Errorf("seccomp-profile: %w", err)
		}
		d.SeccompProfile = string(text)
	}
	return &engine.Config{Config: cfg, ShimPath: c.shim, Defaults: d}, nil
}
