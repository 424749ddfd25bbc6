// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	moby "github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
	"holdfast/internal/store"
)

// bundler makes what the OCI runtime and the shim need for a life of a container.
type bundler struct {
	config   *settings
	store    Store
	networks Networks
	host     oci.Host
	index    *index
	runtimes *runtimes
	mounter  *mounter
	files    *sandboxFiles
}

// bundle makes what the OCI runtime and the shim need for a life: the mounted root
// file system, the files that are bind-mounted into it, config.json, and the
// shim's bootstrap frame. last is the shim's last record of the previous life.
func (b *bundler) bundle(ctx context.Context, spec container.Spec, req request, mounts []mountPoint, sandbox network.Sandbox, last proto.State) (proto.Bootstrap, error) {
	none := proto.Bootstrap{}
	dir, rootfs := b.store.ContainerDir(spec.ID), b.store.Rootfs(spec.ID)
	if err := os.MkdirAll(rootfs, 0o710); err != nil {
		return none, err
	}
	if err := b.mounter.images.MountRootfs(ctx, spec.Image.Snapshot, spec.Image.Storage, dir, rootfs, false); err != nil {
		return none, fmt.Errorf("mount the root file system: %w", err)
	}
	rt, err := b.runtimes.call(spec)
	if err != nil {
		return none, err
	}
	made, err := b.writeConfig(ctx, spec, req, mounts, sandbox)
	if err != nil {
		return none, err
	}
	log, err := b.log(spec, req)
	if err != nil {
		return none, err
	}
	health, err := healthCheck(req.Config, made.oci.Process)
	if err != nil {
		return none, err
	}
	sig := syscall.SIGTERM
	if spec.StopSignal != "" {
		if sig, err = parseSignal(spec.StopSignal); err != nil {
			return none, err
		}
	}
	timeout := 10
	if spec.StopTimeout != nil {
		timeout = *spec.StopTimeout
	}
	oomFile, oomKey := oomCounter(b.host, spec.CgroupDriver, made.oci.Linux.CgroupsPath)
	boot := proto.Bootstrap{
		Version: proto.Version, ID: spec.ID, Life: spec.Life,
		RunDir: b.store.RunDir(spec.ID), DataDir: dir, Bundle: b.store.Bundle(spec.ID), Runtime: rt,
		Terminal: req.Config.Tty, OpenStdin: req.Config.OpenStdin, StdinOnce: req.Config.StdinOnce,
		ConsoleSize: req.HostConfig.ConsoleSize,
		UID:         made.oci.Process.User.UID, GID: made.oci.Process.User.GID,
		Log:        log,
		Restart:    proto.RestartPolicy{Name: spec.Restart.Name, MaxRetries: spec.Restart.MaxRetries},
		AutoRemove: spec.AutoRemove,
		StopSignal: int(sig), StopTimeout: timeout,
		Health:  health,
		OOMFile: oomFile, OOMKey: oomKey,
		Finished:   last.Finished,
		Teardown:   b.teardown(spec.ID, made, sandbox),
		Attributes: attributesOf(spec, req),
		Join:       made.joins,
	}
	if health != nil && last.Health != nil {
		boot.HealthLog = last.Health.Log
	}
	return boot, nil
}

// bundled is what writeConfig has made.
type bundled struct {
	oci      *specs.Spec
	joins    []proto.Join
	subpaths []string // where parts of volumes and images are mounted
	shmPath  string   // of /dev/shm on the host; empty if it is private
}

// writeConfig mounts the container's sources and writes config.json.
func (b *bundler) writeConfig(ctx context.Context, spec container.Spec, req request, mounts []mountPoint, sandbox network.Sandbox) (made bundled, err error) {
	cfg := b.config.Load()
	defaults := cfg.fixedOf(req).defaults(cfg.Defaults)
	files, err := b.files.write(spec, req, sandbox)
	if err != nil {
		return made, err
	}
	bound, err := b.mounter.bindSources(ctx, spec.ID, mounts)
	if err != nil {
		return made, err
	}
	defer closeTrees(bound)
	if made.subpaths, err = b.mounter.placeTrees(spec.ID, bound); err != nil {
		return made, err
	}
	in := oci.Input{
		ID: spec.ID, Host: b.host, Config: req.Config, HostConfig: req.HostConfig,
		Defaults: defaults, Rootfs: b.store.Rootfs(spec.ID), Files: files,
		Mounts:       append(ociMounts(bound), oci.TmpfsMounts(req.HostConfig.Tmpfs)...),
		Namespaces:   oci.Namespaces{Net: sandbox.Netns},
		CgroupDriver: spec.CgroupDriver, CgroupParent: spec.CgroupParent,
	}
	if made.joins, err = b.joinPeers(&in, req); err != nil {
		return made, err
	}
	if err := b.mounter.shm(req, &in); err != nil {
		return made, err
	}
	made.shmPath = in.ShmPath
	if oci.NeedsInit(req.HostConfig, defaults) {
		if in.InitPath, err = oci.FindInit(defaults.InitPath, filepath.Dir(cfg.ShimPath)); err != nil {
			return made, err
		}
	}
	if made.oci, err = oci.Build(in); err != nil {
		return made, err
	}
	raw, err := json.Marshal(made.oci)
	if err != nil {
		return made, err
	}
	return made, os.WriteFile(filepath.Join(b.store.Bundle(spec.ID), "config.json"), raw, 0o640)
}

// log returns what the shim needs to write the log, whose folder it makes.
func (b *bundler) log(spec container.Spec, req request) (proto.Log, error) {
	log, err := logConfig(b.store, spec, req)
	if err != nil || log.Path == "" {
		return log, err
	}
	if err := os.MkdirAll(filepath.Dir(log.Path), 0o750); err != nil {
		return log, err
	}
	return log, store.TakeGroup(filepath.Dir(log.Path))
}

// teardown is what the shim removes from the host when the container has ended.
func (b *bundler) teardown(id string, made bundled, sandbox network.Sandbox) proto.Teardown {
	t := proto.Teardown{Unmount: append([]string{b.store.Rootfs(id)}, made.subpaths...)}
	if len(made.joins) > 0 {
		for _, kind := range proto.JoinedKinds {
			path := proto.JoinedPath(b.store.RunDir(id), kind)
			t.Unmount, t.Remove = append(t.Unmount, path), append(t.Remove, path)
		}
	}
	if made.shmPath == b.mounter.shmPath(id) {
		t.Unmount = append(t.Unmount, made.shmPath)
	}
	if sandbox.ID != "" {
		t.Netlink = b.networks.TeardownBatch(sandbox)
		if sandbox.Netns != "" {
			t.Unmount = append(t.Unmount, sandbox.Netns)
			t.Remove = append(t.Remove, sandbox.Netns)
		}
	}
	return t
}

// oomCounter returns the file and the key that count OOM kills: in the memory
// controller of cgroup v1, or in the v2 tree.
func oomCounter(h oci.Host, driver, cgroup string) (file, key string) {
	dirs := h.CgroupDirs(driver, cgroup)
	if h.Cgroup.Mode == oci.CgroupV2 {
		return filepath.Join(dirs[""], "memory.events"), "oom_kill"
	}
	if dir := dirs["memory"]; dir != "" {
		return filepath.Join(dir, "memory.oom_control"), "oom_kill"
	}
	return "", ""
}

// healthCheck converts the container's health check for the shim, with Docker's
// defaults: an interval of 30 s, 5 s in the start period, a time-out of 30 s and 3
// retries.
func healthCheck(c *moby.Config, base *specs.Process) (*proto.Health, error) {
	hc := c.Healthcheck
	if hc == nil || len(hc.Test) == 0 || hc.Test[0] == "NONE" {
		return nil, nil
	}
	p := *base
	p.Terminal, p.ConsoleSize = false, nil
	switch {
	case hc.Test[0] == "CMD" && len(hc.Test) > 1:
		p.Args = hc.Test[1:]
	case hc.Test[0] == "CMD-SHELL" && len(hc.Test) > 1:
		p.Args = append(shellOf(c), hc.Test[1])
	default:
		return nil, errs.Invalid("invalid health check %q: want CMD, CMD-SHELL or NONE", hc.Test)
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	h := &proto.Health{
		Process: raw, Interval: hc.Interval, Timeout: hc.Timeout,
		StartPeriod: hc.StartPeriod, StartInterval: hc.StartInterval, Retries: hc.Retries,
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&h.Interval, 30 * time.Second}, {&h.Timeout, 30 * time.Second}, {&h.StartInterval, 5 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if h.Retries == 0 {
		h.Retries = 3
	}
	return h, nil
}

func shellOf(c *moby.Config) []string {
	if len(c.Shell) > 0 {
		return append([]string{}, c.Shell...)
	}
	return []string{"/bin/sh", "-c"}
}

// execProcess returns the OCI process of an exec session, and the UID and GID of
// its user on the host.
func (b *bundler) execProcess(v *view, r moby.ExecCreateRequest) (json.RawMessage, uint32, uint32, error) {
	raw, err := os.ReadFile(filepath.Join(b.store.Bundle(v.spec.ID), "config.json"))
	if err != nil {
		return nil, 0, 0, fmt.Errorf("read the container's config.json: %w", err)
	}
	var s specs.Spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, 0, 0, fmt.Errorf("read the container's config.json: %w", err)
	}
	p, err := oci.ExecProcess(s.Process, b.store.Rootfs(v.spec.ID), r, oci.ExecOptions{
		Host: b.host, Config: v.req.Config, HostConfig: v.req.HostConfig,
	})
	if err != nil {
		return nil, 0, 0, err
	}
	out, err := json.Marshal(p)
	return out, p.User.UID, p.User.GID, err
}
