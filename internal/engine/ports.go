package engine

import (
	"context"
	"io"
	"net/netip"
	"os"
	"time"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	mobynet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/container"
	"holdfast/internal/event"
	"holdfast/internal/filter"
	images "holdfast/internal/image"
	"holdfast/internal/network"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
	"holdfast/internal/store"
	volumes "holdfast/internal/volume"
)

// Store is where specs lie. Implementations write durably and whole.
type Store interface {
	WriteSpec(*container.Spec) error
	// BeginCreate marks a container's folder as half made until EndCreate, and
	// NoteVolume what is made along with it; Unborn are the marks that a crash
	// left, for the next daemon to take back.
	BeginCreate(id string) error
	NoteVolume(id, name string) error
	EndCreate(id string) error
	Unborn() ([]store.Unborn, error)
	// LoadAll gives the specs that can be used, and those that can't.
	LoadAll() ([]*container.Spec, []store.Broken, error)
	RemoveContainer(id string) error
	RemoveRunDir(id string) error
	// RunDirs are the IDs of all run directories.
	RunDirs() ([]string, error)

	ContainerDir(id string) string
	LogPath(id, driver string) string
	RunDir(id string) string
	Bundle(id string) string
	Rootfs(id string) string
}

// Keeper keeps descriptors beyond this process's life, where the host has
// something that does. Names are the caller's.
type Keeper interface {
	// Keep stores a copy of a descriptor in place of any other of that name.
	Keep(name string, fd int)
	Forget(name string)
	// Take gives what an earlier daemon has kept under a name, or nil.
	Take(name string) *os.File
}

// Shim is one container's shim, from the daemon's side. Every method's context
// ends the waiting, never the effect.
type Shim interface {
	Hello() proto.HelloReply
	Subscribe(ctx context.Context, after uint64, fn func(proto.Event)) error
	Start(ctx context.Context) (proto.State, error)
	Stop(ctx context.Context, s proto.Stop) (proto.State, error)
	Kill(ctx context.Context, k proto.Kill) error
	Pause(ctx context.Context) (proto.State, error)
	PauseLent(ctx context.Context) (proto.State, error)
	Resume(ctx context.Context) (proto.State, error)
	Update(ctx context.Context, u proto.Update) error
	Resize(ctx context.Context, height, width uint) error
	Names(ctx context.Context, n proto.Names, udp, tcp *os.File) error
	Ports(ctx context.Context, p proto.Ports, sockets ...*os.File) (proto.PortsReply, error)
	Attach(ctx context.Context, a proto.Attach, f *os.File) error
	ExecCreate(ctx context.Context, c proto.ExecCreate) error
	ExecStart(ctx context.Context, s proto.ExecStart, f *os.File) (proto.ExecState, error)
	ExecResize(ctx context.Context, exec string, height, width uint) error
	State(ctx context.Context) (proto.State, error)
	Shutdown(ctx context.Context) error
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
	Close() error
}

// Shims starts shims and finds those that are there.
type Shims interface {
	Spawn(ctx context.Context, o client.Options) (Shim, error)
	Dial(ctx context.Context, runDir string) (Shim, error)
	// State is the last that the shim wrote in its run directory, Exit the
	// durable copy that it left at its end. Neither there: errdefs.ErrNotFound.
	State(runDir string) (proto.State, error)
	Exit(dataDir string) (proto.State, error)
	Journal(runDir string, after uint64) ([]proto.Entry, error)
}

// Images is the image store, and what becomes of images in containers.
type Images interface {
	Driver() string
	Resolve(ctx context.Context, name string, platform *ocispec.Platform) (images.Image, error)
	Means(ctx context.Context) (func(ref, id string) bool, error)
	PrepareRootfs(ctx context.Context, img images.Image, dir string) error
	MountRootfs(ctx context.Context, snapshot, storage, dir, target string, readonly bool) error
	// RootfsMounter is MountRootfs for a thread with a mount namespace of its own.
	RootfsMounter(ctx context.Context, snapshot, storage, dir string, readonly bool) (func(target string) error, error)
	UnmountRootfs(target string) error
	RemoveRootfs(ctx context.Context, dir string) error
	RootfsUsage(dir string) (int64, error)
	Hold(ctx context.Context, snapshots []string) error

	Pull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error
	Push(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error
	Import(ctx context.Context, src io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (string, error)
	Load(ctx context.Context, src io.Reader, platforms []ocispec.Platform, progress func(jsonstream.Message)) error
	Commit(ctx context.Context, c images.Commit, layer func(io.Writer) (bool, error)) (string, error)
	Save(ctx context.Context, names []string, platforms []ocispec.Platform, begin func() io.Writer) error
	List(ctx context.Context, o images.ListOptions) ([]image.Summary, error)
	Inspect(ctx context.Context, name string, platform *ocispec.Platform) (image.InspectResponse, error)
	History(ctx context.Context, name string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error)
	Tag(ctx context.Context, src, dst string) error
	Remove(ctx context.Context, name string, force, prune bool, users func(imageID string) []images.User) ([]image.DeleteResponse, error)
	Prune(ctx context.Context, f filter.Args, used func(imageID string) bool) (image.PruneReport, error)
	DiskUsage(ctx context.Context, containers func(imageID string) int64) (image.DiskUsage, error)
	Auth(ctx context.Context, auth registry.AuthConfig) (string, error)
}

// Networks gives containers their network.
type Networks interface {
	Restore(ctx context.Context, sandboxes map[string]network.Sandbox, unread []string) error
	Prepare(ctx context.Context, r network.Request) (network.Sandbox, []network.Reserved, error)
	Join(ctx context.Context, s network.Sandbox) error
	Publish(ctx context.Context, s network.Sandbox) error
	TeardownBatch(s network.Sandbox) [][]byte
	Release(ctx context.Context, s network.Sandbox) error
	Settings(s network.Sandbox) *moby.NetworkSettings
	Idle(r network.Request) *moby.NetworkSettings

	List(f filter.Args) ([]mobynet.Summary, error)
	Inspect(ref string, name func(container string) string) (mobynet.Inspect, error)
	Network(ref string) (mobynet.Network, error)
	Subnets(ref string) []netip.Prefix
	ListenNames(s network.Sandbox) (udp, tcp *os.File, err error)
	Create(ctx context.Context, r mobynet.CreateRequest) (string, error)
	Remove(ctx context.Context, ref string) (mobynet.Network, error)
	Prune(ctx context.Context, f filter.Args, until time.Time, used func(id string) bool) (mobynet.PruneReport, error)

	// Judge judges the settings that a container is created with for a network.
	Judge(ref string, es *mobynet.EndpointSettings) error

	// With and Without give a running container's sandbox with one network more
	// or less; Change makes the kernel agree; Check judges it for a container
	// that does not run.
	With(s network.Sandbox, r network.Request, ref string, es *mobynet.EndpointSettings) (network.Sandbox, []network.Reserved, error)
	Without(s network.Sandbox, ref string) (network.Sandbox, error)
	Revert(from, to network.Sandbox)
	Leads(s network.Sandbox) []proto.Port
	Change(ctx context.Context, from, to network.Sandbox) error
	Check(ref string, es *mobynet.EndpointSettings) (mobynet.Network, error)
}

// Volumes is the local volume driver.
type Volumes interface {
	Create(o volumes.CreateOptions) (v volume.Volume, created bool, err error)
	Get(name string) (volume.Volume, error)
	List() []volume.Volume
	Remove(name string) error
	// Hold keeps a volume from removal until release is called.
	Hold(name string) (release func(), err error)
	Usage(ctx context.Context, name string) (int64, error)
	CopyUp(rootfs, path, name string) error
	// Restore tells which containers have which volumes mounted.
	Restore(users map[string][]string) error
	Mount(ctx context.Context, name, container string) (string, error)
	Unmount(name, container string) error
}

// Events is the journal of everything that happened.
type Events interface {
	Append(event.Message) (bool, error)
	Subscribe(since, until time.Time, match func(event.Message) bool) *event.Subscription
}

// Lives is the record of the daemon's lives over this data root.
type Lives interface {
	List() []event.Life
	Since(t time.Time) []event.Life
}
