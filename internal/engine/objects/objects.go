// SPDX-License-Identifier: Apache-2.0

// Package objects implements the API's calls for images, volumes and networks, as far
// as they don't change a container. The stores do the work. This package adds what
// the stores can't know: which containers use an object, and the events.
package objects

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"holdfast/internal/image"
)

// Containers reports which containers use an object. The answers are derived from the
// containers' records, so that they are right after a restart of the daemon.
type Containers interface {
	// Ready waits until all containers are known. A request that may remove an
	// object must call it first.
	Ready(ctx context.Context) error
	// Unread returns the number of containers whose record can't be used, so that it
	// is not known which objects they use.
	Unread() int
	// Name returns the name of a container; empty if there is none with this ID.
	Name(id string) string
	// OfImage returns the containers that were created from an image or have it
	// mounted.
	OfImage(id string) []image.User
	// OfManifest returns the IDs of the containers that use a manifest of an image.
	OfManifest(m digest.Digest) []string
	// OfVolume returns the IDs of the containers that have a volume among their
	// mounts.
	OfVolume(name string) []string
	// NetworkNames returns the names of the networks that any container's
	// configuration names.
	NetworkNames() []string
}

// Emit journals an event of an object.
type Emit func(typ, action, id string, attributes map[string]string)

// Pruned journals that objects of a type were pruned, with the bytes reclaimed.
func (emit Emit) Pruned(typ string, reclaimed uint64) {
	emit(typ, "prune", "", map[string]string{"reclaimed": fmt.Sprint(reclaimed)})
}
