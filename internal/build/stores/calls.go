// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"errors"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// call is a method with its argument and result.
type call[A, R any] string

type none struct{}

// The methods. A name is never used again with another meaning.
const (
	getConfig call[none, Config] = "config"

	getUsage call[none, int64] = "usage"

	contentInfo     call[digest.Digest, content.Info]         = "content.info"
	contentInfos    call[[]digest.Digest, []content.Info]     = "content.infos"
	contentUpdate   call[updated[content.Info], content.Info] = "content.update"
	contentWalk     call[[]string, []content.Info]            = "content.walk"
	contentStatus   call[string, content.Status]              = "content.status"
	contentStatuses call[[]string, []content.Status]          = "content.statuses"
	contentAbort    call[string, none]                        = "content.abort"
	contentOpen     call[writing, written]                    = "content.open"
	contentTruncate call[writing, written]                    = "content.truncate"
	contentCommit   call[writing, written]                    = "content.commit"
	contentClose    call[writing, none]                       = "content.close"

	snapshotStat    call[string, snapshots.Info]                  = "snapshot.stat"
	snapshotUpdate  call[updated[snapshots.Info], snapshots.Info] = "snapshot.update"
	snapshotUsage   call[string, snapshots.Usage]                 = "snapshot.usage"
	snapshotMounts  call[string, []mount.Mount]                   = "snapshot.mounts"
	snapshotPrepare call[snapshot, []mount.Mount]                 = "snapshot.prepare"
	snapshotView    call[snapshot, []mount.Mount]                 = "snapshot.view"
	snapshotCommit  call[snapshot, none]                          = "snapshot.commit"
	snapshotRemove  call[string, none]                            = "snapshot.remove"
	snapshotWalk    call[[]string, []snapshots.Info]              = "snapshot.walk"

	leaseCreate    call[leases.Lease, leases.Lease]      = "lease.create"
	leaseDelete    call[leased, none]                    = "lease.delete"
	leaseList      call[[]string, []leases.Lease]        = "lease.list"
	leaseAdd       call[leased, none]                    = "lease.add"
	leaseRemove    call[leased, none]                    = "lease.remove"
	leaseResources call[leases.Lease, []leases.Resource] = "lease.resources"

	imageGet    call[string, images.Image]                = "image.get"
	imageList   call[[]string, []images.Image]            = "image.list"
	imageCreate call[images.Image, images.Image]          = "image.create"
	imageUpdate call[updated[images.Image], images.Image] = "image.update"
	imageDelete call[string, none]                        = "image.delete"
	imageBuilt  call[digest.Digest, none]                 = "image.built"
	layerAdopt  call[adopted, none]                       = "layer.adopt"

	networkConnect    call[connected, string] = "network.connect"
	networkNames      call[string, Names]     = "network.names"
	networkDisconnect call[string, none]      = "network.disconnect"
)

// leaseless are the calls that need no lease.
var leaseless = []string{
	string(getConfig), string(getUsage), string(contentInfo), string(contentInfos), string(contentUpdate), string(contentWalk),
	string(contentStatus), string(contentStatuses), string(snapshotStat), string(snapshotUsage), string(snapshotMounts), string(snapshotWalk),
	string(leaseCreate), string(leaseDelete), string(leaseList), string(leaseAdd), string(leaseRemove), string(leaseResources),
	string(imageGet), string(imageList), string(networkConnect), string(networkNames), string(networkDisconnect),
}

// writeCall is the one request whose body is not JSON but the bytes of a blob.
const writeCall = "content.write"

// updated is an object and the fields of it that are changed; none means all.
type updated[T any] struct {
	Value  T        `json:"value"`
	Fields []string `json:"fields,omitempty"`
}

// writing names a writer of a blob. Every call has what is needed to open the
// writer again, because a daemon that has just started knows none.
type writing struct {
	Ref string `json:"ref"`
	// Writer tells writers with the same Ref apart.
	Writer string             `json:"writer"`
	Desc   ocispec.Descriptor `json:"desc,omitzero"`
	Offset int64              `json:"offset,omitempty"` // bytes written so far
	// For contentCommit.
	Size     int64             `json:"size,omitempty"`
	Expected digest.Digest     `json:"expected,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// written is the state of a writer.
type written struct {
	Status content.Status `json:"status"`
	Digest digest.Digest  `json:"digest"`
}

type snapshot struct {
	Key    string            `json:"key"`
	Parent string            `json:"parent,omitempty"`
	Name   string            `json:"name,omitempty"` // of the committed snapshot
	Labels map[string]string `json:"labels,omitempty"`
}

type leased struct {
	Lease    string          `json:"lease"`
	Resource leases.Resource `json:"resource,omitzero"`
	// New has leaseAdd make the lease, with Labels, unless it exists.
	New    bool              `json:"new,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Sync waits for a garbage collection.
	Sync bool `json:"sync,omitempty"`
}

type adopted struct {
	Chain    digest.Digest `json:"chain"`
	Snapshot string        `json:"snapshot"`
}

type connected struct {
	ID      string `json:"id"`
	Network string `json:"network,omitempty"`
}

// Headers of a call: the namespace in containerd's metadata, the lease of the
// build, and the kind of an error.
const (
	headerNamespace = "Holdfast-Namespace"
	headerLease     = "Holdfast-Lease"
	headerKind      = "Holdfast-Error"
)

// kinds are the errors that keep their kind over the socket.
var kinds = map[string]error{
	"not found":           errdefs.ErrNotFound,
	"already exists":      errdefs.ErrAlreadyExists,
	"invalid argument":    errdefs.ErrInvalidArgument,
	"failed precondition": errdefs.ErrFailedPrecondition,
	"unavailable":         errdefs.ErrUnavailable,
	"not implemented":     errdefs.ErrNotImplemented,
	"data loss":           errdefs.ErrDataLoss,
	"out of range":        errdefs.ErrOutOfRange,
	"resource exhausted":  errdefs.ErrResourceExhausted,
}

func kindOf(err error) string {
	for name, kind := range kinds {
		if errors.Is(err, kind) {
			return name
		}
	}
	return ""
}

// remoteError is an error of the other process.
type remoteError struct {
	text string
	kind error // nil if it has none
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }
