// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/gha"
	"github.com/moby/buildkit/cache/remotecache/inline"
	"github.com/moby/buildkit/cache/remotecache/local"
	registrycache "github.com/moby/buildkit/cache/remotecache/registry"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network"
	bkversion "github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/label"
	"go.etcd.io/bbolt"
	"google.golang.org/grpc"

	"holdfast/internal/beside"
	"holdfast/internal/build"
	"holdfast/internal/build/stores"
	"holdfast/internal/image"
)

// namespace is that of the daemon's store in containerd's metadata.
const namespace = image.Namespace

func runcDir(execRoot string) string { return build.RuncDir(execRoot) }

// builder is BuildKit over the daemon's stores.
type builder struct {
	remote     *stores.Client
	present    *present
	conf       stores.Config // when the process started
	sessions   *session.Manager
	controller *control.Controller
	worker     *stepWorker
	index      *bboltcachestorage.Store // which step has which result
	grpc       *grpc.Server
	conns      *beside.Conns // of grpc
	graceful   chan struct{}
	steps      steps
	at         places
	clearing   sync.Mutex // held by clear
	dataRoot   string
	boot       string // identifies the boot of the machine
}

func openBuilder(ctx context.Context, o beside.Options, remote *stores.Client) (_ *builder, err error) {
	conf, err := remote.Config(ctx)
	if err != nil {
		return nil, err
	}
	remote.Remember(conf.Database)
	state := build.StateDir(o.DataRoot)
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	at := placesOf(o, state)
	if err := at.sweep(conf.Runtime); err != nil {
		return nil, fmt.Errorf("remove what a build left that was killed: %w", err)
	}
	if err := checkDatabases(state); err != nil {
		return nil, err
	}
	if err := at.useTemp(); err != nil {
		return nil, err
	}
	if err := mount.SetTempMountLocation(at.layers); err != nil {
		return nil, err
	}
	bkversion.Version = linkedVersion()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	b := &builder{remote: remote, present: &present{remote: remote, last: conf}, conf: conf, at: at, graceful: make(chan struct{}), conns: beside.NewConns(), dataRoot: o.DataRoot, boot: string(boot)}
	if b.sessions, err = session.NewManager(); err != nil {
		return nil, err
	}
	if b.worker, err = b.newWorker(ctx, state, at); err != nil {
		return nil, err
	}
	if b.controller, err = b.newController(state); err != nil {
		return nil, err
	}
	b.grpc = newGRPC(b.controller, b.admit)
	if err := b.clearKilled(ctx); err != nil {
		logf("what a process has written that was killed can't be removed: %v", err)
	}
	go func() { _ = b.grpc.Serve(b.conns) }() // it ends with the process
	return b, nil
}

// linkedVersion is the version of BuildKit in this binary, which clients ask for.
func linkedVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return bkversion.Version
	}
	for _, m := range info.Deps {
		if m.Path == bkversion.Package {
			return m.Version
		}
	}
	return bkversion.Version
}

// close ends all builds, waits until their steps have ended, and closes the databases.
func (b *builder) close() error {
	close(b.graceful)
	b.grpc.Stop()
	b.steps.wait(stepsEnd)
	err := errors.Join(b.controller.Close(), b.at.sweep(b.conf.Runtime))
	if err == nil {
		err = closedCache(build.StateDir(b.dataRoot))
	}
	removeCgroup(b.conf.CgroupParent)
	return err
}

// hosts returns the hosts of registries by the daemon's present configuration.
func (b *builder) hosts() docker.RegistryHosts {
	return func(host string) ([]docker.RegistryHost, error) {
		conf := b.present.now(context.Background())
		hosts, err := image.Hosts(image.Registry{Mirrors: conf.Mirrors, Insecure: conf.Insecure, TokenHosts: conf.TokenHosts})
		if err != nil {
			return nil, err
		}
		return hosts(host)
	}
}

// newWorker makes the worker, which carries out the steps of builds.
func (b *builder) newWorker(ctx context.Context, state string, at places) (*stepWorker, error) {
	networks := map[pb.NetMode]network.Provider{
		pb.NetMode_UNSET: confined{bridged{b.remote, b.graceful}},
		pb.NetMode_HOST:  confined{network.NewHostProvider()},
		pb.NetMode_NONE:  confined{network.NewNoneProvider()},
	}
	monitor, err := resources.NewMonitor()
	if err != nil {
		return nil, err
	}
	runs := &stepExecutor{present: b.present, at: at, networks: networks, monitor: monitor, steps: &b.steps, parents: parents{dir: at.parents}}
	if _, err := runs.pick(b.conf); err != nil {
		return nil, err
	}
	md, err := openDatabase(filepath.Join(state, metadataFile), metadata.NewStore)
	if err != nil {
		return nil, err
	}
	id, err := base.ID(state)
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	archutil.CacheMaxAge = 0 // stepWorker.host has the only cache
	blobs := containerdsnapshot.NewContentStore(image.Documents(b.remote.Content(b.conf.ContentDir)), namespace)
	leasing := leaseutil.WithNamespace(leaseNames{b.remote.Leases()}, namespace)
	w, err := base.NewWorker(ctx, base.WorkerOpt{
		ID: id, Root: state,
		Labels: map[string]string{
			label.Executor: "oci", label.Snapshotter: b.conf.Driver, label.Hostname: hostname, label.Network: "bridge",
			label.OCIProcessMode: "sandbox", label.SELinuxEnabled: "false", label.ApparmorProfile: b.conf.AppArmor,
			"org.mobyproject.buildkit.worker.moby.host-gateway-ip": b.conf.HostGateway,
		},
		BuildkitVersion: bkclient.BuildkitVersion{
			Package: bkversion.Package, Version: bkversion.Version, Revision: bkversion.Revision,
		},
		GCPolicy:         gcPolicy(b.conf.GC, state),
		NetworkProviders: networks,
		Executor:         runs,
		Snapshotter:      containerdsnapshot.NewSnapshotter(b.conf.Driver, layerNames{b.remote.Snapshots()}, namespace, nil),
		ContentStore:     blobs,
		Applier:          image.LayerApplier(blobs),
		Differ:           walking.NewWalkingDiff(blobs),
		ImageStore:       b.remote.Images(),
		RegistryHosts:    b.hosts(),
		LeaseManager:     leasing,
		GarbageCollect:   func(ctx context.Context) (gc.Stats, error) { return nil, collect(ctx, leasing) },
		MetadataStore:    md,
		MountPoolRoot:    at.mounts,
		ResourceMonitor:  monitor,
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(state, "reserve"), make([]byte, reserved), 0o600); err != nil {
		logf("if the disk becomes full the cache of builds may not be prunable: %v", err)
	}
	return &stepWorker{Worker: w, remote: b.remote, present: b.present, state: state, scratch: at.layers}, nil
}

// collect waits for a garbage collection of the daemon's store, which follows the
// end of a lease.
func collect(ctx context.Context, lm leases.Manager) error {
	lease, err := lm.Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	return lm.Delete(ctx, lease, leases.SynchronousDelete)
}

// gcPolicy translates the configured policy, or makes BuildKit's default one.
func gcPolicy(c stores.GC, root string) []bkclient.PruneInfo {
	if c.Off {
		return nil
	}
	var out []bkclient.PruneInfo
	for _, r := range c.Policy {
		out = append(out, bkclient.PruneInfo{
			All: r.All, Filter: r.Filter, KeepDuration: r.KeepDuration,
			ReservedSpace: r.ReservedSpace, MaxUsedSpace: r.MaxUsedSpace, MinFreeSpace: r.MinFreeSpace,
		})
	}
	if len(out) > 0 {
		return out
	}
	stat, _ := disk.GetDiskStat(root) // without it the bounds are absolute
	gc := config.GCConfig{
		GCReservedSpace: config.DiskSpace{Bytes: c.ReservedSpace}, GCMaxUsedSpace: config.DiskSpace{Bytes: c.MaxUsedSpace},
		GCMinFreeSpace: config.DiskSpace{Bytes: c.MinFreeSpace},
	}
	for _, r := range config.DefaultGCPolicy(gc, stat) {
		out = append(out, bkclient.PruneInfo{
			All: r.All, Filter: r.Filters, KeepDuration: r.KeepDuration.Duration,
			ReservedSpace: r.ReservedSpace.AsBytes(stat), MaxUsedSpace: r.MaxUsedSpace.AsBytes(stat), MinFreeSpace: r.MinFreeSpace.AsBytes(stat),
		})
	}
	return out
}

// newController makes the controller, which clients talk to.
func (b *builder) newController(state string) (*control.Controller, error) {
	workers := &worker.Controller{}
	if err := workers.Add(b.worker); err != nil {
		return nil, err
	}
	gw, err := gateway.NewGatewayFrontend(workers.Infos(), nil)
	if err != nil {
		return nil, err
	}
	cache, err := openCache(state, b.boot)
	if err != nil {
		return nil, err
	}
	b.index = cache
	history, err := boltutil.SafeOpen(filepath.Join(state, historyFile), 0o600, &bbolt.Options{FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, err
	}
	hosts := b.hosts()
	return control.NewController(control.Opt{
		SessionManager:   b.sessions,
		WorkerController: workers,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build),
			"gateway.v0":    gw,
		},
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"registry": registrycache.ResolveCacheExporterFunc(b.sessions, hosts),
			"local":    local.ResolveCacheExporterFunc(b.sessions),
			"inline":   inline.ResolveCacheExporterFunc(),
			"gha":      gha.ResolveCacheExporterFunc(nil, nil),
		},
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"registry": registrycache.ResolveCacheImporterFunc(b.sessions, b.worker.ContentStore(), hosts),
			"local":    local.ResolveCacheImporterFunc(b.sessions),
			"gha":      gha.ResolveCacheImporterFunc(nil, nil),
		},
		CacheManager:   solver.NewCacheManager(context.Background(), "local", cache, worker.NewCacheResultStorage(workers)),
		Entitlements:   governed, // admit decides
		HistoryDB:      history,
		HistoryConfig:  historyConfig(b.conf),
		CacheStore:     cache,
		LeaseManager:   b.worker.LeaseManager(),
		ContentStore:   b.worker.ContentStore(),
		GarbageCollect: b.worker.GarbageCollect,
		GracefulStop:   b.graceful,
	})
}

// historyConfig bounds the history; nil is BuildKit's own bound.
func historyConfig(c stores.Config) *config.HistoryConfig {
	if c.HistoryAge == 0 && c.HistoryEntries == nil {
		return nil
	}
	return &config.HistoryConfig{MaxAge: config.Duration{Duration: c.HistoryAge}, MaxEntries: c.HistoryEntries}
}
