// SPDX-License-Identifier: Apache-2.0

// Package stores lends the daemon's stores to the process that builds images: the
// blobs, the layers, the leases and the names of images, and the networks of RUN
// steps. Server is the daemon's side, Client the other.
//
// A call is a request over a Unix socket in a directory that only root enters, with
// JSON in both directions. Only the bytes of a blob are sent as they are. A blob is
// read from its file, which both processes can open. Nothing of a call lives in the
// server's memory alone, so a build goes on when the daemon is killed: the client
// repeats a call until a daemon answers, for Patience at most. A call that had its
// effect before the daemon died must not fail when it is repeated; each method of
// the client says how it finds that out.
//
// Daemon and build process may be of different releases, because a build process
// outlives the daemon that started it. Methods and fields are only added.
package stores

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
)

// Patience is how long a call waits for a daemon while there is none.
const Patience = time.Minute

// Stores are what a Server lends.
type Stores struct {
	Content   content.Store
	Snapshots snapshots.Snapshotter
	Leases    leases.Manager
	// LeaseWith adds a resource to a lease, which it makes if it does not exist.
	LeaseWith func(context.Context, leases.Lease, leases.Resource) error
	Images    images.Store
	Layers    Layers
	Networks  Networks
	// Usage returns how many bytes the store takes on disk.
	Usage func(context.Context) (int64, error)
	// Config returns what builds have to know of the daemon's configuration.
	Config func() Config
}

// Layers knows which snapshot has a layer of an image.
type Layers interface {
	// Adopt makes a snapshot the layer with a chain ID, if the store has no other
	// for it. ErrNotFound: there is no such snapshot.
	Adopt(ctx context.Context, chain digest.Digest, snapshot string) error
	// Built reports that a build has made the image with an ID.
	Built(ctx context.Context, id digest.Digest) error
}

// Networks makes the network namespaces of RUN steps.
type Networks interface {
	// Connect makes a namespace on a network, "" for the default one, and returns
	// the path of its file. It may be repeated with the same ID, which has 64 hex
	// digits.
	Connect(ctx context.Context, id, network string) (string, error)
	// Names returns how names are resolved in a namespace.
	Names(ctx context.Context, id string) (Names, error)
	// Disconnect removes a namespace. It may be repeated.
	Disconnect(ctx context.Context, id string) error
}

// Names is how names are resolved in the network namespace of a RUN step. It is empty
// on the default network, which has no name server.
type Names struct {
	// View is the path of the file that the step's name server answers from; see
	// package names.
	View string `json:"view,omitempty"`
	// Resolv is the content of the step's resolv.conf.
	Resolv []byte `json:"resolv,omitempty"`
}

// Config is what builds have to know of the daemon's configuration.
type Config struct {
	// Driver is the name of the storage driver, ContentDir the directory of the
	// blobs.
	Driver     string `json:"driver"`
	ContentDir string `json:"contentDir"`
	// Database is the path of the database of blobs, layers and leases, for
	// Client.Remember.
	Database string `json:"database,omitempty"`
	// Mirrors, Insecure and TokenHosts are those of image.Registry.
	Mirrors    []string `json:"mirrors,omitempty"`
	Insecure   []string `json:"insecure,omitempty"`
	TokenHosts []string `json:"tokenHosts,omitempty"`
	// DNS, Search and Options are written into the resolv.conf of RUN steps.
	DNS     []string `json:"dns,omitempty"`
	Search  []string `json:"search,omitempty"`
	Options []string `json:"options,omitempty"`
	// CgroupParent is the cgroup of RUN steps.
	CgroupParent string `json:"cgroupParent,omitempty"`
	// AppArmor is the profile of RUN steps, or "".
	AppArmor string `json:"apparmor,omitempty"`
	// Seccomp is the text of the seccomp profile of RUN steps, "unconfined", or ""
	// for the built-in one.
	Seccomp string `json:"seccomp,omitempty"`
	// HostGateway is the host's address that "host-gateway" stands for.
	HostGateway string `json:"hostGateway,omitempty"`
	// Runtime is the path of the OCI runtime.
	Runtime string `json:"runtime,omitempty"`
	// Entitlements that clients may ask for.
	Entitlements []string `json:"entitlements,omitempty"`
	GC           GC       `json:"gc,omitzero"`
	// HistoryAge, in nanoseconds, and HistoryEntries bound the history of builds; 0
	// and nil are BuildKit's bounds.
	HistoryAge     time.Duration `json:"historyAge,omitempty"`
	HistoryEntries *int64        `json:"historyEntries,omitempty"`
}

// GC bounds the cache of builds. Sizes are in bytes; 0 is BuildKit's default.
type GC struct {
	Off           bool   `json:"off,omitempty"`
	ReservedSpace int64  `json:"reservedSpace,omitempty"`
	MaxUsedSpace  int64  `json:"maxUsedSpace,omitempty"`
	MinFreeSpace  int64  `json:"minFreeSpace,omitempty"`
	Policy        []Rule `json:"policy,omitempty"`
}

// Rule is one rule of builder.gc.policy in daemon.json.
type Rule struct {
	All           bool          `json:"all,omitempty"`
	Filter        []string      `json:"filter,omitempty"`
	KeepDuration  time.Duration `json:"keepDuration,omitempty"` // nanoseconds
	ReservedSpace int64         `json:"reservedSpace,omitempty"`
	MaxUsedSpace  int64         `json:"maxUsedSpace,omitempty"`
	MinFreeSpace  int64         `json:"minFreeSpace,omitempty"`
}
