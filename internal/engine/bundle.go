package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
	"holdfast/internal/store"
)

// bundle makes all that the OCI runtime and the shim need for a life: the
// mounted root file system, the files that are bound into it, config.json, and
// the shim's first frame.
func (e *Engine) bundle(ctx context.Context, spec container.Spec, req request, mounts []mountPoint, sandbox network.Sandbox) (proto.Bootstrap, error) {
	none := proto.Bootstrap{}
	cfg := e.config.Load()
	defaults := cfg.of(req).defaults(cfg.Defaults)
	run, dir := e.store.RunDir(spec.ID), e.store.ContainerDir(spec.ID)
	bundle, rootfs := e.store.Bundle(spec.ID), e.store.Rootfs(spec.ID)
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return none, err
	}
	if err := e.images.MountRootfs(ctx, spec.Image.Snapshot, spec.Image.Storage, dir, rootfs, false); err != nil {
		return none, fmt.Errorf("mount the root file system: %w", err)
	}
	rt, err := e.runtime(spec)
	if err != nil {
		return none, err
	}
	files, err := e.sandboxFiles(spec, req, sandbox)
	if err != nil {
		return none, err
	}
	bound, err := e.bindSources(ctx, spec.ID, mounts)
	if err != nil {
		return none, err
	}
	in := oci.Input{
		ID: spec.ID, Host: e.host, Config: req.Config, HostConfig: req.HostConfig,
		Defaults: defaults, Rootfs: rootfs, Files: files,
		Mounts:       append(bound, oci.TmpfsMounts(req.HostConfig.Tmpfs)...),
		Namespaces:   oci.Namespaces{Net: sandbox.Netns},
		CgroupDriver: spec.CgroupDriver, CgroupParent: spec.CgroupParent,
	}
	if err := e.joinPeers(&in, req); err != nil {
		return none, err
	}
	if err := e.shm(req, &in); err != nil {
		return none, err
	}
	if oci.NeedsInit(req.HostConfig, defaults) {
		if in.InitPath, err = oci.FindInit(defaults.InitPath, filepath.Dir(cfg.ShimPath)); err != nil {
			return none, err
		}
	}
	s, err := oci.Build(in)
	if err != nil {
		return none, err
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return none, err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o640); err != nil {
		return none, err
	}

	log, err := e.logConfig(spec, req)
	if err != nil {
		return none, err
	}
	if log.Path != "" {
		if err := os.MkdirAll(filepath.Dir(log.Path), 0o750); err != nil {
			return none, err
		}
		if err := store.TakeGroup(filepath.Dir(log.Path)); err != nil {
			return none, err
		}
	}
	health, err := healthCheck(req.Config, s.Process)
	if err != nil {
		return none, err
	}
	a := &actor{spec: spec, req: req}
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
	oomFile, oomKey := oomCounter(e.host, spec.CgroupDriver, s.Linux.CgroupsPath)
	boot := proto.Bootstrap{
		Version: proto.Version, ID: spec.ID, Life: spec.Life,
		RunDir: run, DataDir: dir, Bundle: bundle, Runtime: rt,
		Terminal: req.Config.Tty, OpenStdin: req.Config.OpenStdin, StdinOnce: req.Config.StdinOnce,
		ConsoleSize: req.HostConfig.ConsoleSize,
		UID:         s.Process.User.UID, GID: s.Process.User.GID,
		Log:        log,
		Restart:    proto.RestartPolicy{Name: spec.Restart.Name, MaxRetries: spec.Restart.MaxRetries},
		AutoRemove: spec.AutoRemove,
		StopSignal: int(sig), StopTimeout: timeout,
		Health:  health,
		OOMFile: oomFile, OOMKey: oomKey,
		Teardown:   proto.Teardown{Unmount: []string{rootfs}},
		Attributes: a.attributes(),
	}
	if in.ShmPath == e.shmPath(spec.ID) {
		boot.Teardown.Unmount = append(boot.Teardown.Unmount, in.ShmPath)
	}
	if sandbox.ID != "" {
		boot.Teardown.Netlink = e.networks.TeardownBatch(sandbox)
		if sandbox.Netns != "" {
			boot.Teardown.Unmount = append(boot.Teardown.Unmount, sandbox.Netns)
			boot.Teardown.Remove = append(boot.Teardown.Remove, sandbox.Netns)
		}
	}
	return boot, nil
}

// oomCounter is the file and the key that count OOM kills: in the memory
// controller of cgroup v1, or in the tree of v2.
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

// runtime is how a container's OCI runtime is called: by the name that it was
// created with, with the options that the name has now.
func (e *Engine) runtime(spec container.Spec) (proto.Runtime, error) {
	rt, ok := e.config.Load().runtimes()[spec.Runtime]
	if !ok {
		return proto.Runtime{}, invalid("the runtime %q that the container was created with is not configured any more: add it to the daemon's option \"runtimes\"", spec.Runtime)
	}
	args := append([]string{"--root", e.runtimeRoot(spec)}, rt.Args...)
	if spec.CgroupDriver == oci.DriverSystemd {
		args = append(args, "--systemd-cgroup")
	}
	return proto.Runtime{Path: rt.Path, Args: args}, nil
}

// runtimeRoot is where the OCI runtime keeps its state; one folder a runtime,
// below the exec root of the container's present life.
func (e *Engine) runtimeRoot(spec container.Spec) string {
	return filepath.Join(cmp.Or(spec.ExecRoot, e.config.Load().ExecRoot), "runtime", spec.Runtime)
}

func (e *Engine) runtimeState(spec container.Spec) string {
	return filepath.Join(e.runtimeRoot(spec), spec.ID)
}

// bindSources mounts volumes and makes the sources that -v asks to be made.
func (e *Engine) bindSources(ctx context.Context, id string, mounts []mountPoint) ([]oci.Mount, error) {
	out := make([]oci.Mount, 0, len(mounts))
	for _, m := range mounts {
		o := oci.Mount{
			Source: m.Source, Destination: m.Destination, Type: m.Type, RW: m.RW,
			Propagation: m.Propagation, PropagationIfShared: true,
		}
		if b := m.BindOptions; b != nil {
			o.PropagationIfShared = b.Propagation == ""
			o.NonRecursive, o.ReadOnlyNonRecursive, o.ReadOnlyForceRecursive = b.NonRecursive, b.ReadOnlyNonRecursive, b.ReadOnlyForceRecursive
		}
		switch m.Type {
		case mount.TypeVolume:
			path, err := e.volumes.Mount(ctx, m.Name, id)
			if err != nil {
				return nil, fmt.Errorf("mount volume %s: %w", m.Name, err)
			}
			o.Source = path
			if m.Subpath != "" {
				if o.Source, err = below(path, m.Subpath); err != nil {
					return nil, invalid("subpath %s of volume %s: %v", m.Subpath, m.Name, err)
				}
			}
		case mount.TypeTmpfs:
			opts, err := oci.TmpfsOptions(m.Tmpfs, !m.RW)
			if err != nil {
				return nil, err
			}
			o.Options = opts
		case mount.TypeBind:
			_, err := os.Stat(m.Source)
			if errors.Is(err, fs.ErrNotExist) && m.Create {
				err = os.MkdirAll(m.Source, 0o755)
			}
			if err != nil {
				return nil, invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
			}
		}
		out = append(out, o)
	}
	return out, nil
}

// below is a path below a folder of a volume, with the links on the way
// followed within the folder.
func below(dir, sub string) (string, error) {
	path, err := securejoin.SecureJoin(dir, sub)
	if err != nil {
		return "", err
	}
	_, err = os.Lstat(path)
	return path, err
}

// joinPeers fills in the namespaces of other containers that this one shares.
func (e *Engine) joinPeers(in *oci.Input, req request) error {
	peer := func(ref, what string) (*view, error) {
		a, err := e.index.find(ref)
		if err != nil {
			return nil, err
		}
		v := a.view.Load()
		if !apiState(v).Running || v.rec.Pid == 0 {
			return nil, conflict("cannot join %s of a non running container: %s", what, v.spec.Name)
		}
		return v, nil
	}
	ns := func(v *view, kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", v.rec.Pid, kind) }
	h := req.HostConfig
	if h.NetworkMode.IsContainer() {
		v, err := peer(h.NetworkMode.ConnectedContainer(), "network")
		if err != nil {
			return err
		}
		in.Namespaces.Net, in.Namespaces.UTS = ns(v, "net"), ns(v, "uts")
	}
	if h.IpcMode.IsContainer() {
		v, err := peer(h.IpcMode.Container(), "IPC")
		if err != nil {
			return err
		}
		if m := v.req.HostConfig.IpcMode; m.IsPrivate() || m.IsNone() {
			return conflict("cannot join IPC of container %s: its IPC is not shareable, create it with --ipc=shareable", v.spec.Name)
		}
		in.Namespaces.IPC = ns(v, "ipc")
		in.ShmPath = e.shmPath(v.spec.ID)
	}
	if h.PidMode.IsContainer() {
		v, err := peer(h.PidMode.Container(), "PID")
		if err != nil {
			return err
		}
		in.Namespaces.PID = ns(v, "pid")
	}
	return nil
}

// shm gives a container with shareable IPC a /dev/shm that others can join; a
// private one lives in the container's own mount namespace.
func (e *Engine) shm(req request, in *oci.Input) error {
	switch h := req.HostConfig; {
	case h.IpcMode.IsHost():
		in.ShmPath = "/dev/shm"
	case h.IpcMode.IsShareable():
		path := e.shmPath(in.ID)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := syscall.Mount("shm", path, "tmpfs", syscall.MS_NOEXEC|syscall.MS_NOSUID|syscall.MS_NODEV, fmt.Sprintf("mode=1777,size=%d", h.ShmSize)); err != nil {
			return fmt.Errorf("mount /dev/shm: %w", err)
		}
		in.ShmPath = path
	}
	return nil
}

// shmPath is where a shareable /dev/shm is mounted.
func (e *Engine) shmPath(id string) string { return filepath.Join(e.store.RunDir(id), "shm") }

// healthCheck makes the shim's health check of the container's, with Docker's
// defaults: 30 s between checks and for each, 3 failures, 5 s in the start
// period.
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
		return nil, invalid("invalid health check %q: want CMD, CMD-SHELL or NONE", hc.Test)
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

// execProcess is the OCI process of an exec session, and the host's IDs of its
// user.
func (e *Engine) execProcess(v *view, r moby.ExecCreateRequest) (json.RawMessage, uint32, uint32, error) {
	raw, err := os.ReadFile(filepath.Join(e.store.Bundle(v.spec.ID), "config.json"))
	if err != nil {
		return nil, 0, 0, fmt.Errorf("read the container's config.json: %w", err)
	}
	var s specs.Spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, 0, 0, fmt.Errorf("read the container's config.json: %w", err)
	}
	p, err := oci.ExecProcess(s.Process, e.store.Rootfs(v.spec.ID), r, oci.ExecOptions{
		Host: e.host, Config: v.req.Config, HostConfig: v.req.HostConfig,
	})
	if err != nil {
		return nil, 0, 0, err
	}
	out, err := json.Marshal(p)
	return out, p.User.UID, p.User.GID, err
}
