// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/config"
	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/event"
	images "holdfast/internal/image"
	"holdfast/internal/network"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
	"holdfast/internal/store"
	volumes "holdfast/internal/volume"
)

// world is what outlives a daemon: the specs, the shims, the resources in use on the
// host, and the journal. Each daemon of a test accesses it through its own ports,
// which have no effect after the daemon's death.
type world struct {
	t       *testing.T
	dir     string
	journal *event.Journal

	mu     sync.Mutex  // guards all below
	trace  []happening // since the last take
	specs  map[string][]byte
	broken []store.Broken
	unborn map[string][]string
	aside  map[string][]byte
	shims  map[string]*fakeShim
	boot   int
	lives  []event.Life
	faults map[string]error         // by point; each fails one call
	holds  map[string]chan struct{} // by point, until released

	sandboxes map[string]string   // container → its sandbox
	rootfs    map[string]bool     // container folder → prepared
	mounted   map[string]bool     // mount point → mounted
	volumes   map[string][]string // name → containers that have it mounted
	anonymous map[string]bool
	names     map[string]string // ID → the container's first name in the script
	nextPid   int
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, dir: t.TempDir(),
		specs: map[string][]byte{}, unborn: map[string][]string{}, aside: map[string][]byte{}, shims: map[string]*fakeShim{},
		faults: map[string]error{}, holds: map[string]chan struct{}{},
		sandboxes: map[string]string{}, rootfs: map[string]bool{}, mounted: map[string]bool{},
		volumes: map[string][]string{}, anonymous: map[string]bool{}, names: map[string]string{},
		nextPid: 5 << 20, // above the kernel's limit, so that no such process exists
	}
	var err error
	if w.journal, err = event.Open(filepath.Join(w.dir, "events"), event.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.journal.Close() })
	return w
}

// happening is a result that concerns a container.
type happening struct{ id, text string }

func (w *world) add(id, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, happening{w.readable(id), w.readable(text)})
}

// readable replaces the IDs in a text by names; the mutex is held.
func (w *world) readable(text string) string {
	for id, name := range w.names {
		text = strings.ReplaceAll(text, id, name)
		text = strings.ReplaceAll(text, id[:12], name)
	}
	return text
}

// named sets the name by which the results show an ID.
func (w *world) named(id, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[id] = name
}

// daemon is one life of a daemon in the world.
type daemon struct {
	*Engine
	w     *world
	ports *ports
}

// start starts a daemon, which has not loaded anything yet.
func (w *world) start(live bool) *daemon {
	p := &ports{w: w}
	p.killed = make(chan struct{})
	w.mu.Lock()
	w.lives = append(w.lives, event.Life{Number: uint64(len(w.lives) + 1), BootID: fmt.Sprint("boot ", w.boot)})
	w.mu.Unlock()
	return &daemon{New(w.deps(p), w.config(live)), w, p}
}

// observe starts a command's observer, which has not observed anything yet.
func (w *world) observe() (*daemon, *Observer) {
	p := &ports{w: w}
	p.killed = make(chan struct{})
	o := NewObserver(w.deps(p), nil, w.config(true))
	return &daemon{o.Engine, w, p}, o
}

func (w *world) config(live bool) *Config {
	return &Config{
		Config: &config.Config{
			LiveRestore: live, ShutdownTimeout: 15,
			DataRoot: w.dir, ExecRoot: filepath.Join(w.dir, "run"), DefaultRuntime: "runc",
		},
		ShimPath: "/nonexistent/holdfast-shim",
		Defaults: oci.Defaults{CgroupDriver: oci.DriverCgroupfs, Runtime: "runc", Runtimes: []string{"runc"}},
	}
}

func (w *world) deps(p *ports) Deps {
	return Deps{
		Store: fakeStore{p}, Shims: fakeShims{p}, Images: fakeImages{ports: p}, Networks: fakeNetworks{ports: p},
		Volumes: fakeVolumes{ports: p}, Events: fakeEvents{p}, Lives: fakeLives{w},
		Host: oci.Host{Caps: []string{"CAP_CHOWN"}, CPUShares: true, Cgroup: oci.Cgroup{Mode: oci.CgroupV2}},
		Log:  slog.New(slog.NewTextHandler(testWriter{w.t}, nil)), Release: "test", ID: "daemon",
	}
}

// kill ends a daemon at once: what it has begun has no effect from now on.
func (d *daemon) kill() {
	d.ports.dead.Store(true)
	close(d.ports.killed)
	d.progress.close()
	for _, a := range d.index.all() {
		select {
		case <-a.quit:
		default:
			close(a.quit)
			a.post(func() {})
		}
	}
	d.ports.mu.Lock()
	conns := d.ports.conns
	d.ports.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// ports are the engine's ports for one life of a daemon.
type ports struct {
	w      *world
	dead   atomic.Bool
	killed chan struct{}

	mu    sync.Mutex
	conns []*fakeConn
}

var errDead = errors.New("the daemon is dead")

// at is called by every call of a port, with the name of a point at which a script can
// block the engine or let the call fail.
func (p *ports) at(point string) error {
	if p.dead.Load() {
		return errDead
	}
	p.w.mu.Lock()
	hold := p.w.holds[point]
	p.w.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-p.killed:
			return errDead
		}
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	err := p.w.faults[point]
	delete(p.w.faults, point)
	return err
}

// fakeStore stores specs in memory and run directories on disk.
type fakeStore struct{ *ports }

func (s fakeStore) WriteSpec(spec *container.Spec) error {
	if err := s.at("write spec"); err != nil {
		return err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	s.w.mu.Lock()
	s.w.specs[spec.ID] = text
	s.w.mu.Unlock()
	return s.at("spec was written")
}

func (s fakeStore) BeginCreate(id string) error {
	if err := s.at("begin create"); err != nil {
		return err
	}
	s.w.mu.Lock()
	s.w.unborn[id] = []string{}
	s.w.mu.Unlock()
	return os.MkdirAll(s.ContainerDir(id), 0o700)
}

func (s fakeStore) NoteVolume(id, name string) error {
	if err := s.at("note volume"); err != nil {
		return err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.unborn[id] = append(s.w.unborn[id], name)
	return nil
}

func (s fakeStore) EndCreate(id string) error {
	if err := s.at("end create"); err != nil {
		return err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	delete(s.w.unborn, id)
	return nil
}

func (s fakeStore) Unborn() ([]store.Unborn, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	var out []store.Unborn
	for id, vols := range s.w.unborn {
		out = append(out, store.Unborn{ID: id, Volumes: vols, Complete: s.w.specs[id] != nil})
	}
	return out, nil
}

func (s fakeStore) LoadAll() (specs []*container.Spec, broken []store.Broken, err error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for _, text := range s.w.specs {
		spec := &container.Spec{}
		if err := json.Unmarshal(text, spec); err != nil {
			return nil, nil, err
		}
		specs = append(specs, spec)
	}
	return specs, s.w.broken, nil
}

func (s fakeStore) RemoveContainer(id string) error {
	return errors.Join(s.SetAside(id), s.DeleteAside(id))
}

func (s fakeStore) SetAside(id string) error {
	if err := s.at("remove record"); err != nil {
		return err
	}
	s.w.mu.Lock()
	s.w.aside[id] = s.w.specs[id]
	delete(s.w.specs, id)
	delete(s.w.unborn, id)
	s.w.mu.Unlock()
	if err := os.RemoveAll(s.RunDir(id)); err != nil {
		return err
	}
	return s.at("record was set aside")
}

func (s fakeStore) DeleteAside(id string) error {
	if err := s.at("delete what was set aside"); err != nil {
		return err
	}
	s.w.mu.Lock()
	delete(s.w.aside, id)
	s.w.mu.Unlock()
	return os.RemoveAll(s.ContainerDir(id))
}

func (s fakeStore) Aside() ([]store.Aside, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	var out []store.Aside
	for id, text := range s.w.aside {
		if text == nil {
			continue
		}
		spec := &container.Spec{}
		if err := json.Unmarshal(text, spec); err != nil {
			return nil, err
		}
		out = append(out, store.Aside{Spec: spec, Dir: s.ContainerDir(id)})
	}
	return out, nil
}

func (s fakeStore) RemoveRunDir(id string) error {
	if err := s.at("remove run directory"); err != nil {
		return err
	}
	return os.RemoveAll(s.RunDir(id))
}

func (s fakeStore) RunDirs() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.w.dir, "run", "shim"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, err
}

func (s fakeStore) ContainerDir(id string) string { return filepath.Join(s.w.dir, "containers", id) }
func (s fakeStore) LogPath(id, driver string) string {
	return filepath.Join(s.ContainerDir(id), id+"-json.log")
}
func (s fakeStore) RunDir(id string) string { return s.w.runDir(id) }
func (s fakeStore) NamesDir() string        { return filepath.Join(s.w.dir, "run", "names") }
func (s fakeStore) Bundle(id string) string { return filepath.Join(s.RunDir(id), "bundle") }
func (s fakeStore) Rootfs(id string) string { return filepath.Join(s.Bundle(id), "rootfs") }

func (w *world) runDir(id string) string { return filepath.Join(w.dir, "run", "shim", id) }

// fakeImages has one image, box.
type fakeImages struct {
	Images
	*ports
}

func (i fakeImages) Driver() string { return "overlayfs" }

func (i fakeImages) ReferenceMatcher(context.Context) (func(ref, id string) bool, error) {
	return func(ref, id string) bool { return id == "sha256:"+ref }, nil
}

func (i fakeImages) Resolve(_ context.Context, name string, _ *ocispec.Platform) (images.Image, error) {
	if name != "box" {
		return images.Image{}, errs.NotFound("No such image: %s", name)
	}
	img := images.Image{Ref: name, ID: "sha256:box", Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Snapshot: "top", Storage: "overlayfs"}
	img.Config = dockerspec.DockerOCIImageConfig{}
	img.Config.Cmd = []string{"serve"}
	img.Config.Env = []string{"PATH=/bin"}
	return img, nil
}

func (i fakeImages) PrepareRootfs(_ context.Context, _ images.Image, dir string) error {
	if err := i.at("prepare rootfs"); err != nil {
		return err
	}
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	i.w.rootfs[filepath.Base(dir)] = true
	return nil
}

func (i fakeImages) RootfsMounter(context.Context, string, string, string, bool) (func(string) error, error) {
	return nil, errdefs.ErrNotImplemented
}

func (i fakeImages) MountRootfs(_ context.Context, _, _, _, target string, _ bool) error {
	if err := i.at("mount rootfs"); err != nil {
		return err
	}
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	i.w.mounted[target] = true
	return nil
}

func (i fakeImages) UnmountRootfs(target string) error {
	if err := i.at("unmount rootfs"); err != nil {
		return err
	}
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	delete(i.w.mounted, target)
	return nil
}

func (i fakeImages) PinLayers(context.Context, images.Image, string) error { return nil }

func (i fakeImages) Tree(context.Context, string, string, string, string) (*os.File, error) {
	return nil, errdefs.ErrNotImplemented
}

func (i fakeImages) RemoveRootfs(_ context.Context, dir string) error {
	if err := i.at("remove rootfs"); err != nil {
		return err
	}
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	delete(i.w.rootfs, filepath.Base(dir))
	return nil
}

func (i fakeImages) RootfsUsage(string) (int64, error)            { return 0, nil }
func (i fakeImages) PinSnapshots(context.Context, []string) error { return i.at("hold images") }

// fakeNetworks allocates sandboxes and records which are not released.
type fakeNetworks struct {
	Networks
	*ports
}

func (n fakeNetworks) Restore(_ context.Context, sandboxes map[string]network.Sandbox, _ []string) error {
	if err := n.at("restore networks"); err != nil {
		return err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.sandboxes = map[string]string{}
	for id, s := range sandboxes {
		n.w.sandboxes[id] = s.ID
	}
	return nil
}

func (n fakeNetworks) Prepare(_ context.Context, r network.Request) (network.Sandbox, []network.Reserved, error) {
	if err := n.at("prepare network"); err != nil {
		return network.Sandbox{}, nil, err
	}
	s := network.Sandbox{ID: newID()[:8], Container: r.ID, Mode: r.Mode, Netns: filepath.Join(n.w.dir, "netns"), Endpoints: []network.Endpoint{{Network: "bridge", NetworkID: "bridge"}}}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if have := n.w.sandboxes[r.ID]; have != "" {
		n.w.t.Errorf("container %s gets a second network while it has one", r.Name)
	}
	n.w.sandboxes[r.ID] = s.ID
	return s, nil, nil
}

func (n fakeNetworks) Join(context.Context, network.Sandbox) error    { return n.at("join network") }
func (n fakeNetworks) Publish(context.Context, network.Sandbox) error { return n.at("publish ports") }
func (n fakeNetworks) TeardownBatch(network.Sandbox) [][]byte         { return nil }

func (n fakeNetworks) Release(_ context.Context, s network.Sandbox) error {
	if err := n.at("release network"); err != nil {
		return err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if n.w.sandboxes[s.Container] == s.ID {
		delete(n.w.sandboxes, s.Container)
	}
	return nil
}

func (n fakeNetworks) CheckConnect(ref string, _ *mobynet.EndpointSettings) (mobynet.Network, error) {
	return n.Network(ref)
}

func (n fakeNetworks) ValidateEndpoint(string, *mobynet.EndpointSettings) error { return nil }
func (n fakeNetworks) ValidateCombination(string, map[string]*mobynet.EndpointSettings) error {
	return nil
}
func (n fakeNetworks) ApplyLegacyLinks(context.Context, network.Sandbox) error { return nil }
func (n fakeNetworks) HostGateway() []netip.Addr                               { return nil }

func (n fakeNetworks) AddEndpoint(s network.Sandbox, _ network.Request, ref string, _ *mobynet.EndpointSettings) (network.Sandbox, []network.Reserved, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	s.Endpoints = append(slices.Clone(s.Endpoints), network.Endpoint{Network: ref, NetworkID: ref})
	n.w.sandboxes[s.Container] = s.ID
	return s, nil, nil
}

func (n fakeNetworks) ApplySandbox(context.Context, network.Sandbox, network.Sandbox) error {
	return n.at("change network")
}

func (n fakeNetworks) Subnets(string) []netip.Prefix { return nil }
func (n fakeNetworks) NamesPath(string) string       { return "" }

func (n fakeNetworks) ListenNames(network.Sandbox) (udp, tcp *os.File, err error) {
	return nil, nil, errors.ErrUnsupported
}

func (n fakeNetworks) Settings(network.Sandbox) *moby.NetworkSettings { return &moby.NetworkSettings{} }
func (n fakeNetworks) Idle(network.Request) *moby.NetworkSettings     { return &moby.NetworkSettings{} }
func (n fakeNetworks) Network(ref string) (mobynet.Network, error) {
	return mobynet.Network{Name: ref, ID: ref, Driver: "bridge"}, nil
}

// fakeVolumes records which containers have which volumes mounted.
type fakeVolumes struct {
	Volumes
	*ports
}

func (v fakeVolumes) Create(o volumes.CreateOptions) (volume.Volume, bool, error) {
	if err := v.at("create volume"); err != nil {
		return volume.Volume{}, false, err
	}
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	_, had := v.w.volumes[o.Name]
	if !had {
		v.w.volumes[o.Name] = []string{}
		if _, ok := o.Labels[volumes.AnonymousLabel]; ok {
			v.w.anonymous[o.Name] = true
		}
	}
	return volume.Volume{Name: o.Name, Driver: "local", Mountpoint: "/volumes/" + o.Name, Labels: o.Labels}, !had, nil
}

func (v fakeVolumes) Remove(name string) error {
	if err := v.at("remove volume"); err != nil {
		return err
	}
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	users, ok := v.w.volumes[name]
	if !ok {
		return errs.NotFound("get %s: no such volume", name)
	}
	if len(users) > 0 {
		return errs.Conflict("remove %s: volume is in use", name)
	}
	delete(v.w.volumes, name)
	delete(v.w.anonymous, name)
	return nil
}

func (v fakeVolumes) Hold(string) (func(), error)     { return func() {}, v.at("hold volume") }
func (v fakeVolumes) Fills(_, _ string) (bool, error) { return true, nil }
func (v fakeVolumes) CopyUp(_, _, _, _ string) error  { return v.at("copy up") }
func (v fakeVolumes) Restore(users map[string][]string) error {
	if err := v.at("restore volumes"); err != nil {
		return err
	}
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	for name := range v.w.volumes {
		v.w.volumes[name] = slices.Clone(users[name])
	}
	return nil
}

func (v fakeVolumes) Mount(_ context.Context, name, id string) (string, error) {
	if err := v.at("mount volume"); err != nil {
		return "", err
	}
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	if !slices.Contains(v.w.volumes[name], id) {
		v.w.volumes[name] = append(v.w.volumes[name], id)
	}
	return "/volumes/" + name, nil
}

func (v fakeVolumes) Unmount(name, id string) error {
	if err := v.at("unmount volume"); err != nil {
		return err
	}
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	v.w.volumes[name] = slices.DeleteFunc(v.w.volumes[name], func(u string) bool { return u == id })
	return nil
}

// fakeEvents writes to a real journal, and adds what is new in it to the results.
type fakeEvents struct{ *ports }

func (f fakeEvents) Append(m event.Message) (bool, error) {
	if f.dead.Load() {
		return false, errDead
	}
	fresh, err := f.w.journal.Append(m)
	if fresh {
		at := m.Actor.Attributes
		var more []string
		for _, k := range []string{"exitCode", "signal", "container"} {
			if at[k] != "" {
				more = append(more, k+"="+at[k])
			}
		}
		name := m.Actor.ID
		switch {
		case m.Type == "container":
			name = at["name"]
		case m.Type == "volume" && len(name) == 64:
			name = "(anonymous)"
		}
		id := m.Actor.ID
		switch m.Type {
		case "volume":
			id = ""
		case "network":
			id = at["container"]
		case "container":
			if m.Action == "create" {
				id = name // the ID has no name yet
			}
		}
		f.w.add(id, strings.TrimSpace(fmt.Sprintf("event: %s %s %s %s", m.Type, m.Action, name, strings.Join(more, " "))))
	}
	return fresh, err
}

func (f fakeEvents) Forget(prefix string) {
	if !f.dead.Load() {
		f.w.journal.Forget(prefix)
	}
}

func (f fakeEvents) Through(stream string) uint64 { return f.w.journal.Through(stream) }

func (f fakeEvents) End() event.Position { return event.Position{} }

func (f fakeEvents) Subscribe(since, until time.Time, match func(event.Message) bool) *event.Subscription {
	return f.w.journal.Subscribe(since, until, match)
}

type fakeLives struct{ w *world }

func (l fakeLives) List() []event.Life {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return slices.Clone(l.w.lives)
}

func (l fakeLives) Since(time.Time) []event.Life { return l.List() }

// fakeShims starts and finds fakeShims.
type fakeShims struct{ *ports }

func (s fakeShims) Spawn(ctx context.Context, o client.Options) (Shim, error) {
	if err := s.at("spawn shim"); err != nil {
		return nil, err
	}
	sh := &fakeShim{w: s.w, boot: o.Bootstrap, over: make(chan struct{})}
	sh.st = proto.State{Schema: proto.StateSchema, ID: o.Bootstrap.ID, Life: o.Bootstrap.Life, Status: proto.StatusCreated}
	s.w.mu.Lock()
	if old := s.w.shims[o.Bootstrap.ID]; old != nil && !old.gone() {
		s.w.t.Errorf("a second shim is started for one container")
	}
	s.w.shims[o.Bootstrap.ID] = sh
	s.w.mu.Unlock()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.write()
	return sh.connect(s.ports), nil
}

func (s fakeShims) Dial(ctx context.Context, runDir string) (Shim, error) {
	s.w.mu.Lock()
	sh := s.w.shims[filepath.Base(runDir)]
	s.w.mu.Unlock()
	if sh == nil || sh.gone() {
		return nil, fmt.Errorf("dial: %w", errdefs.ErrNotFound)
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.silent {
		return nil, fmt.Errorf("dial: %w", context.DeadlineExceeded)
	}
	return sh.connect(s.ports), nil
}

func (s fakeShims) State(runDir string) (st proto.State, err error) {
	return readJSON[proto.State](filepath.Join(runDir, proto.StateFile))
}

func (s fakeShims) Exit(dataDir string) (proto.State, error) {
	return readJSON[proto.State](filepath.Join(dataDir, proto.ExitFile))
}

func (s fakeShims) Journal(runDir string, after uint64) ([]proto.Entry, error) {
	return readJSON[[]proto.Entry](filepath.Join(runDir, proto.JournalFile))
}

func readJSON[T any](path string) (v T, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return v, errdefs.ErrNotFound
	}
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal(text, &v)
}

// fakeShim is a shim process with its container. It does what a real one does, without
// delay unless the script blocks it.
type fakeShim struct {
	w    *world
	boot proto.Bootstrap
	over chan struct{} // closed when the process is gone

	mu      sync.Mutex
	st      proto.State
	journal []proto.Entry
	conns   []*fakeConn
	silent  bool // it does not answer new connections
	lingers bool // the container ignores all signals except SIGKILL
	asked   bool // Start was called
	ended   bool // the last report is sent
	isOver  bool
}

func (s *fakeShim) gone() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

// write writes the state and the journal; the mutex is held.
func (s *fakeShim) write() {
	for name, v := range map[string]any{proto.StateFile: s.st, proto.JournalFile: s.journal} {
		text, err := json.Marshal(v)
		if err == nil {
			err = os.WriteFile(filepath.Join(s.boot.RunDir, name), text, 0o600)
		}
		if err != nil {
			s.w.t.Errorf("shim: %v", err)
		}
	}
}

// note journals an action and reports it to the subscribers; the mutex is held.
func (s *fakeShim) note(action string, attributes map[string]string) {
	e := proto.Entry{Time: time.Now().UTC(), Action: action, Attributes: attributes}
	if action != proto.ActionState {
		e.Seq = uint64(len(s.journal) + 1)
		s.journal = append(s.journal, e)
		s.st.Seq = e.Seq
	}
	s.write()
	for _, c := range s.conns {
		c.post(proto.Event{Entry: e, State: s.st})
	}
}

// run makes the container run; the mutex is held.
func (s *fakeShim) run() {
	s.w.mu.Lock()
	s.w.nextPid++
	pid := s.w.nextPid
	s.w.mu.Unlock()
	s.st.Status, s.st.Pid, s.st.Started, s.st.ExitCode = proto.StatusRunning, pid, time.Now().UTC(), 0
	s.note(proto.ActionStart, nil)
}

// exit ends the container's process.
func (s *fakeShim) exit(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(code)
}

func (s *fakeShim) end(code int) {
	if s.st.Pid == 0 {
		return
	}
	s.st.Pid, s.st.Finished, s.st.ExitCode = 0, time.Now().UTC(), code
	again := !s.st.Manual && (s.boot.Restart.Name == "always" || s.boot.Restart.Name == "unless-stopped" ||
		s.boot.Restart.Name == "on-failure" && code != 0 && (s.boot.Restart.MaxRetries == 0 || s.st.RestartCount < s.boot.Restart.MaxRetries))
	s.st.Status = proto.StatusExited
	if again {
		s.st.Status = proto.StatusRestarting
		s.st.RestartCount++
	}
	s.note(proto.ActionDie, map[string]string{"exitCode": fmt.Sprint(code)})
	if again {
		go func() {
			select {
			case <-time.After(100 * time.Millisecond):
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.st.Status == proto.StatusRestarting && !s.isOver {
					s.run()
				}
			case <-s.over:
			}
		}()
		return
	}
	s.finish()
}

// finish handles the end of the last run; the mutex is held.
func (s *fakeShim) finish() {
	if s.boot.AutoRemove && len(s.conns) == 0 {
		s.st.Status = proto.StatusRemoved
		s.note(proto.ActionExited, nil)
		s.note(proto.ActionDestroy, nil)
	} else {
		s.note(proto.ActionExited, nil)
	}
	s.w.mu.Lock()
	for _, target := range s.boot.Teardown.Unmount {
		delete(s.w.mounted, target)
	}
	s.w.mu.Unlock()
	text, _ := json.Marshal(s.st)
	if err := os.WriteFile(filepath.Join(s.boot.DataDir, proto.ExitFile), text, 0o600); err != nil {
		s.w.t.Errorf("shim: %v", err)
	}
	s.ended = true
	s.leaveUnheard()
}

// leaveUnheard ends the process after its last report if nobody can acknowledge it;
// the mutex is held.
func (s *fakeShim) leaveUnheard() {
	if s.ended && !slices.ContainsFunc(s.conns, (*fakeConn).subscribed) {
		s.leave()
	}
}

// leave ends the process and its connections; the mutex is held.
func (s *fakeShim) leave() {
	if s.isOver {
		return
	}
	s.isOver = true
	close(s.over)
	for _, c := range s.conns {
		c.end()
	}
	s.conns = nil
}

// fails lets the start fail without a daemon that hears of it. The shim has not
// cleaned up yet.
func (s *fakeShim) fails(code int, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = true
	s.st.Status, s.st.Finished, s.st.ExitCode, s.st.Error = proto.StatusExited, time.Now().UTC(), code, message
	s.write()
}

// killedJournalling is kill -9 of the shim after it has journalled the end of the
// container's process, and before it records the end in its state.
func (s *fakeShim) killedJournalling(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal = append(s.journal, proto.Entry{
		Seq: uint64(len(s.journal) + 1), Time: time.Now().UTC(), Action: proto.ActionDie,
		Attributes: map[string]string{"exitCode": fmt.Sprint(code)},
	})
	s.write()
	s.leave()
}

// killed is kill -9 of the shim. Its container may run on.
func (s *fakeShim) killed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leave()
}

// fakeConn is a daemon's connection to a shim. The shim's reports are passed to the
// subscriber in order, by one goroutine, as in package client.
type fakeConn struct {
	Shim // nil: for the methods that no script uses
	*ports
	s     *fakeShim
	hello proto.HelloReply
	done  chan struct{}
	wake  chan struct{}

	mu     sync.Mutex
	fn     func(proto.Event)
	events []proto.Event
	ended  bool
	passed chan struct{} // closed when the past events were passed to fn
}

// connect makes a connection; the shim's mutex is held.
func (s *fakeShim) connect(p *ports) *fakeConn {
	c := &fakeConn{ports: p, s: s, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	c.hello = proto.HelloReply{Version: proto.Version, Release: "test", State: s.st}
	s.conns = append(s.conns, c)
	p.mu.Lock()
	p.conns = append(p.conns, c)
	p.mu.Unlock()
	go c.dispatch()
	return c
}

func (c *fakeConn) dispatch() {
	defer close(c.done)
	for range c.wake {
		c.mu.Lock()
		events, fn, ended, passed := c.events, c.fn, c.ended, c.passed
		if fn != nil {
			c.events = nil
		}
		c.passed = nil
		c.mu.Unlock()
		if fn != nil {
			for _, e := range events {
				c.at("report " + e.Action)
				fn(e)
			}
		}
		if passed != nil {
			close(passed)
		}
		if ended {
			return
		}
	}
}

func (c *fakeConn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *fakeConn) post(e proto.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fn == nil {
		return
	}
	c.events = append(c.events, e)
	c.signal()
}

func (c *fakeConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.signal()
}

// call calls at and locks the shim's mutex. After success the caller unlocks it.
func (c *fakeConn) call(point string) error {
	if err := c.at(point); err != nil {
		return err
	}
	c.s.mu.Lock()
	if c.s.isOver || !slices.Contains(c.s.conns, c) {
		c.s.mu.Unlock()
		return fmt.Errorf("shim %s: %w: the connection to the shim has ended", point, errdefs.ErrUnavailable)
	}
	return nil
}

func (c *fakeConn) Hello() proto.HelloReply { return c.hello }
func (c *fakeConn) Done() <-chan struct{}   { return c.done }

func (c *fakeConn) Close() error {
	c.s.mu.Lock()
	c.s.conns = slices.DeleteFunc(c.s.conns, func(o *fakeConn) bool { return o == c })
	c.s.leaveUnheard()
	c.s.mu.Unlock()
	c.end()
	return nil
}

func (c *fakeConn) subscribed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fn != nil
}

// Heard acknowledges a report. The shim exits after its last one.
func (c *fakeConn) Heard(seq, _ uint64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.ended && seq >= c.s.st.Seq {
		c.s.leave()
	}
}

func (c *fakeConn) Subscribe(_ context.Context, after uint64, fn func(proto.Event)) error {
	if err := c.call("subscribe"); err != nil {
		return err
	}
	c.mu.Lock()
	c.fn = fn
	c.mu.Unlock()
	for _, e := range c.s.journal {
		if e.Seq > after {
			c.post(proto.Event{Entry: e, State: c.s.st})
		}
	}
	passed := make(chan struct{})
	c.mu.Lock()
	c.passed = passed
	c.mu.Unlock()
	c.s.mu.Unlock()
	c.signal()
	select {
	case <-passed:
	case <-c.done:
	}
	return nil
}

func (c *fakeConn) Start(context.Context) (proto.State, error) {
	if err := c.at("start shim"); err != nil {
		var refused *proto.Error
		if errors.As(err, &refused) {
			// The runtime failed: the shim reports that and exits by itself.
			c.s.mu.Lock()
			defer c.s.mu.Unlock()
			c.s.st.Status, c.s.st.Finished, c.s.st.ExitCode, c.s.st.Error = proto.StatusExited, time.Now().UTC(), refused.ExitCode, refused.Message
			c.s.finish()
		}
		return proto.State{}, err
	}
	if err := c.call("shim has been asked to start"); err != nil {
		return proto.State{}, err
	}
	c.s.asked = true
	c.s.run()
	st := c.s.st
	c.s.mu.Unlock()
	// The shim has already sent its report that the container runs.
	return st, c.at("hear of the start")
}

func (c *fakeConn) Stop(_ context.Context, o proto.Stop) (proto.State, error) {
	if err := c.call("stop shim"); err != nil {
		return proto.State{}, err
	}
	if !c.s.asked {
		c.s.mu.Unlock()
		return proto.State{}, fmt.Errorf("%w%w", errdefs.ErrConflict, &proto.Error{Kind: proto.KindConflict, Message: "never started"})
	}
	timeout := time.Duration(o.Timeout) * time.Second
	if o.Default {
		timeout = time.Duration(c.s.boot.StopTimeout) * time.Second
	}
	c.s.st.Manual = true
	sig := o.Signal
	if sig == 0 {
		sig = c.s.boot.StopSignal
	}
	if c.s.st.Status == proto.StatusRestarting {
		c.s.st.Status = proto.StatusExited
		c.s.finish()
	}
	if sig == 9 || !c.s.lingers {
		c.s.end(128 + sig)
	}
	c.s.mu.Unlock()
	if timeout >= 0 {
		go func() { // the stop goes on when its caller has gone
			select {
			case <-c.s.over:
			case <-time.After(timeout):
				c.s.mu.Lock()
				if c.s.st.Status != proto.StatusExited && sig != 9 {
					c.s.note(proto.ActionKill, map[string]string{"signal": "9"})
				}
				c.s.mu.Unlock()
				c.s.exit(137)
			}
		}()
	}
	select {
	case <-c.s.over:
	case <-c.killed:
		return proto.State{}, errDead
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.st.Status != proto.StatusExited {
		return proto.State{}, fmt.Errorf("shim stop: %w: the connection to the shim has ended", errdefs.ErrUnavailable)
	}
	return c.s.st, nil
}

func (c *fakeConn) Kill(_ context.Context, k proto.Kill) error {
	if err := c.call("kill shim"); err != nil {
		return err
	}
	if k.Manual {
		c.s.st.Manual = true
	}
	if k.Signal == 9 || k.Signal == 15 && !c.s.lingers {
		c.s.end(128 + k.Signal)
	}
	c.s.mu.Unlock()
	return c.at("hear of the kill")
}

func (c *fakeConn) PauseLent(ctx context.Context) (proto.State, error) { return c.Pause(ctx) }

func (c *fakeConn) Pause(context.Context) (proto.State, error) {
	return c.verb("pause shim", proto.StatusRunning, proto.StatusPaused)
}

func (c *fakeConn) Resume(context.Context) (proto.State, error) {
	return c.verb("resume shim", proto.StatusPaused, proto.StatusRunning)
}

func (c *fakeConn) verb(point, from, to string) (proto.State, error) {
	if err := c.call(point); err != nil {
		return proto.State{}, err
	}
	defer c.s.mu.Unlock()
	if c.s.st.Status != from {
		return c.s.st, fmt.Errorf("%w%w", errdefs.ErrConflict, &proto.Error{Kind: proto.KindConflict, Message: "container is not " + from})
	}
	c.s.st.Status = to
	c.s.note(proto.ActionState, nil)
	return c.s.st, nil
}

func (c *fakeConn) Update(context.Context, proto.Update) error { return c.quick("update shim") }
func (c *fakeConn) Resize(context.Context, uint, uint) error   { return c.quick("resize shim") }
func (c *fakeConn) ExecResize(context.Context, string, uint, uint) error {
	return c.quick("resize exec")
}
func (c *fakeConn) Names(context.Context, proto.Names, *os.File, *os.File) error { return nil }

func (c *fakeConn) Attach(context.Context, proto.Attach, *os.File) error {
	return c.quick("attach shim")
}
func (c *fakeConn) ExecCreate(context.Context, proto.ExecCreate) error { return c.quick("create exec") }
func (c *fakeConn) ExecStart(context.Context, proto.ExecStart, *os.File) (proto.ExecState, error) {
	return proto.ExecState{}, c.quick("start exec")
}

func (c *fakeConn) quick(point string) error {
	if err := c.call(point); err != nil {
		return err
	}
	c.s.mu.Unlock()
	return nil
}

func (c *fakeConn) State(context.Context) (proto.State, error) {
	if err := c.call("state"); err != nil {
		return proto.State{}, err
	}
	defer c.s.mu.Unlock()
	return c.s.st, nil
}

func (c *fakeConn) Shutdown(context.Context) error {
	if err := c.call("shut shim down"); err != nil {
		return err
	}
	defer c.s.mu.Unlock()
	if c.s.asked {
		return fmt.Errorf("%w%w", errdefs.ErrConflict, &proto.Error{Kind: proto.KindConflict, Message: "container was started: stop it first"})
	}
	c.s.leave()
	return nil
}

// left lists what containers use on the host. It is empty if nothing runs and
// everything was released.
func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for id := range w.sandboxes {
		out = append(out, "network of "+w.readable(id))
	}
	for id := range w.rootfs {
		if w.specs[id] == nil {
			out = append(out, "files of "+w.readable(id))
		}
	}
	for target := range w.mounted {
		rel, _ := filepath.Rel(w.dir, target)
		out = append(out, "mount "+w.readable(rel))
	}
	for name, users := range w.volumes {
		if w.anonymous[name] {
			name = "(anonymous)"
		}
		for _, u := range users {
			out = append(out, "volume "+name+" mounted by "+w.readable(u))
		}
		if len(users) == 0 && name == "(anonymous)" {
			out = append(out, "volume "+name)
		}
	}
	for id, s := range w.shims {
		if !s.gone() {
			out = append(out, "shim of "+w.readable(id))
		}
	}
	for id := range w.unborn {
		out = append(out, "half made "+w.readable(id))
	}
	entries, _ := os.ReadDir(filepath.Join(w.dir, "run", "shim"))
	for _, e := range entries {
		if w.specs[e.Name()] == nil {
			out = append(out, "run directory of "+w.readable(e.Name()))
		}
	}
	slices.Sort(out)
	return out
}

// take returns the results since the last call, ordered by container: results of
// different containers have no defined order.
func (w *world) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortStableFunc(w.trace, func(a, b happening) int { return strings.Compare(a.id, b.id) })
	var out []string
	for _, h := range w.trace {
		out = append(out, h.text)
	}
	w.trace = nil
	return out
}
