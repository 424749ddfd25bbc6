// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"io"
	"net/netip"
	"os"
	"time"

	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/container"
	"holdfast/internal/engine/objects"
	"holdfast/internal/event"
	"holdfast/internal/eventserver"
	images "holdfast/internal/image"
	"holdfast/internal/network"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
	"holdfast/internal/store"
)

// Store stores specs, and has the folders of containers. Implementations write
// durably and atomically.
type Store interface {
	Paths
	Creations
	WriteSpec(*container.Spec) error
	// LoadAll returns the specs that can be used, and those that can't.
	LoadAll() ([]*container.Spec, []store.Broken, error)
	Removals
	RemoveRunDir(id string) error
	// RunDirs returns the IDs of all run directories.
	RunDirs() ([]string, error)
}

// Removals removes the records of containers.
type Removals interface {
	RemoveContainer(id string) error
	// SetAside removes a container: from then on it is gone. Aside returns it, also to
	// the next daemon, until DeleteAside deletes its files.
	SetAside(id string) error
	DeleteAside(id string) error
	Aside() ([]store.Aside, error)
}

// Creations marks creations that are incomplete.
type Creations interface {
	// BeginCreate marks a container's creation as incomplete until EndCreate.
	// NoteVolume adds a volume that is created with it. Unborn returns the marks
	// that a crash left, so that the next daemon completes these creations or rolls
	// them back.
	BeginCreate(id string) error
	NoteVolume(id, name string) error
	EndCreate(id string) error
	Unborn() ([]store.Unborn, error)
}

// Paths are the folders and files of containers.
type Paths interface {
	ContainerDir(id string) string
	LogPath(id, driver string) string
	RunDir(id string) string
	// NamesDir is the folder of the files from which shims read the names in each
	// network.
	NamesDir() string
	Bundle(id string) string
	Rootfs(id string) string
}

// Keeper stores descriptors beyond this process's life, such as the service manager
// does. The caller chooses the names.
type Keeper interface {
	// Keep stores a copy of a descriptor. It replaces one of the same name.
	Keep(name string, fd int)
	Forget(name string)
	// Take returns the descriptor that an earlier daemon stored under a name, or nil.
	Take(name string) *os.File
}

// Shim is the daemon's connection to one container's shim. A method's context ends
// the waiting, not the effect.
type Shim interface {
	ShimProcess
	ShimSessions
	Hello() proto.HelloReply
	Subscribe(ctx context.Context, after uint64, fn func(proto.Event)) error
	Names(ctx context.Context, n proto.Names, udp, tcp *os.File) error
	Ports(ctx context.Context, p proto.Ports, sockets ...*os.File) (proto.PortsReply, error)
	Shutdown(ctx context.Context) error
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
	Close() error
}

// ShimProcess are a shim's calls for the container's process.
type ShimProcess interface {
	Start(ctx context.Context) (proto.State, error)
	Stop(ctx context.Context, s proto.Stop) (proto.State, error)
	Kill(ctx context.Context, k proto.Kill) error
	Pause(ctx context.Context) (proto.State, error)
	PauseLent(ctx context.Context) (proto.State, error)
	Resume(ctx context.Context) (proto.State, error)
	Update(ctx context.Context, u proto.Update) error
	State(ctx context.Context) (proto.State, error)
}

// ShimSessions are a shim's calls for attached clients and exec sessions.
type ShimSessions interface {
	Resize(ctx context.Context, height, width uint) error
	Attach(ctx context.Context, a proto.Attach, f *os.File) error
	ExecCreate(ctx context.Context, c proto.ExecCreate) error
	ExecStart(ctx context.Context, s proto.ExecStart, f *os.File) (proto.ExecState, error)
	ExecResize(ctx context.Context, exec string, height, width uint) error
}

// Shims spawns shims and connects to running ones.
type Shims interface {
	Spawn(ctx context.Context, o client.Options) (Shim, error)
	Dial(ctx context.Context, runDir string) (Shim, error)
	// State reads the last record that the shim wrote in its run directory, and Exit
	// the durable record of the end. If there is none, the error is
	// errdefs.ErrNotFound.
	State(runDir string) (proto.State, error)
	Exit(dataDir string) (proto.State, error)
	Journal(runDir string, after uint64) ([]proto.Entry, error)
}

// Images is the image store, and the root file systems of containers.
type Images interface {
	objects.ImageStore
	Rootfses
	Driver() string
	Resolve(ctx context.Context, name string, platform *ocispec.Platform) (images.Image, error)
	ReferenceMatcher(ctx context.Context) (func(ref, id string) bool, error)
	// Tree returns what is at a path in an image whose layers are held, as a detached
	// read-only mount.
	Tree(ctx context.Context, snapshot, storage, dir, path string) (*os.File, error)
	// PinSnapshots sets which snapshots containers use, and PinLayers protects an image's
	// layers from removal until RemoveRootfs of dir.
	PinSnapshots(ctx context.Context, snapshots []string) error
	PinLayers(ctx context.Context, img images.Image, dir string) error

	Commit(ctx context.Context, c images.Commit, layer func(io.Writer) (bool, error)) (string, error)
}

// Rootfses are the root file systems of containers.
type Rootfses interface {
	PrepareRootfs(ctx context.Context, img images.Image, dir string) error
	MountRootfs(ctx context.Context, snapshot, storage, dir, target string, readonly bool) error
	// RootfsMounter is MountRootfs for a thread with its own mount namespace.
	RootfsMounter(ctx context.Context, snapshot, storage, dir string, readonly bool) (func(target string) error, error)
	UnmountRootfs(target string) error
	RemoveRootfs(ctx context.Context, dir string) error
	RootfsUsage(dir string) (int64, error)
}

// Networks sets up the networks of containers.
type Networks interface {
	objects.NetworkStore
	Sandboxes
	Endpoints
	Restore(ctx context.Context, sandboxes map[string]network.Sandbox, unread []string) error
	Settings(s network.Sandbox) *moby.NetworkSettings
	Idle(r network.Request) *moby.NetworkSettings
	Subnets(ref string) []netip.Prefix
	// NamesPath is the file of names of a network that another process writes, or "".
	NamesPath(networkID string) string
	HostGateway() []netip.Addr
}

// Sandboxes makes and removes what a container has of the network.
type Sandboxes interface {
	Prepare(ctx context.Context, r network.Request) (network.Sandbox, []network.Reserved, error)
	Join(ctx context.Context, s network.Sandbox) error
	Publish(ctx context.Context, s network.Sandbox) error
	TeardownBatch(s network.Sandbox) [][]byte
	Release(ctx context.Context, s network.Sandbox) error
	// ApplyLegacyLinks applies the present legacy links of a running container's sandbox.
	ApplyLegacyLinks(ctx context.Context, s network.Sandbox) error
	ListenNames(s network.Sandbox) (udp, tcp *os.File, err error)
	// PortTargets returns where a shim has to forward the sandbox's ports to.
	PortTargets(s network.Sandbox) []proto.Port
}

// Endpoints changes which networks a container is on.
type Endpoints interface {
	// ValidateEndpoint checks the settings of one network that a container is
	// created with. ValidateCombination checks that its networks go together.
	ValidateEndpoint(ref string, es *mobynet.EndpointSettings) error
	ValidateCombination(mode string, endpoints map[string]*mobynet.EndpointSettings) error
	// CheckConnect checks whether a container that does not run can be connected.
	CheckConnect(ref string, es *mobynet.EndpointSettings) (mobynet.Network, error)

	// AddEndpoint and RemoveEndpoint return a running container's sandbox with one
	// network more or less, in memory only. ApplySandbox makes the kernel agree.
	// Revert takes back a sandbox that was not stored or not applied.
	AddEndpoint(s network.Sandbox, r network.Request, ref string, es *mobynet.EndpointSettings) (network.Sandbox, []network.Reserved, error)
	RemoveEndpoint(s network.Sandbox, ref string) (network.Sandbox, error)
	Revert(from, to network.Sandbox)
	ApplySandbox(ctx context.Context, from, to network.Sandbox) error
}

// Volumes is the local volume driver.
type Volumes interface {
	objects.VolumeStore
	// Hold protects a volume from removal until release is called.
	Hold(name string) (release func(), err error)
	// Fills reports whether CopyUp has something to copy from path.
	Fills(rootfs, path string) (bool, error)
	CopyUp(rootfs, path, name, subpath string) error
	// Restore sets which containers have which volumes mounted.
	Restore(users map[string][]string) error
	Mount(ctx context.Context, name, container string) (string, error)
	// Subtree returns what is at a path in a mounted volume, as a detached mount.
	Subtree(name, path string) (*os.File, error)
	Unmount(name, container string) error
}

// Events is the journal of all events.
type Events interface {
	Append(event.Message) (bool, error)
	// Through returns the number up to which all entries of a stream are recorded.
	Through(stream string) uint64
	// Forget drops the sources with a prefix, of which no event will come again.
	Forget(prefix string)
	End() event.Position
	Subscribe(since, until time.Time, match func(event.Message) bool) *event.Subscription
}

// Swarm gives containers that are no tasks their places on networks of the swarm.
type Swarm interface {
	// Member reports whether the host is in a swarm.
	Member() bool
	// Attach gives a container an address on a network, which is given by name or ID,
	// and makes the network known on this host. A want that is valid is the address
	// that the container asks for. It is idempotent. Errors: ErrNotFound: the swarm has
	// no such network; ErrPermissionDenied: it is for services only; ErrUnavailable.
	Attach(ctx context.Context, container, network string, want netip.Addr) (name string, address netip.Addr, internal bool, err error)
}

// EventServer is another process that serves clients of the journal. Its clients stay
// connected when the daemon ends.
type EventServer interface {
	// Ready starts the process if it does not run. After success Serve can be called.
	Ready() error
	// Serve passes a client to the process. The caller still owns client.
	Serve(client *os.File, r eventserver.Request) error
	// Clients returns how many clients the process has.
	Clients() int
}

// Lives is the record of the daemon's lives over this data root.
type Lives interface {
	List() []event.Life
	Since(t time.Time) []event.Life
}
