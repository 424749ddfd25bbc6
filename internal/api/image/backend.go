// SPDX-License-Identifier: Apache-2.0

// Package image serves the operations on images. It may not keep state.
package image

import (
	"context"
	"io"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/engine/objects"
	"holdfast/internal/filter"
)

// Registries answers about what registries have, and stores nothing.
type Registries interface {
	// Distribution asks a registry about a normalized reference.
	Distribution(ctx context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error)
	// Search asks a registry for repositories. A limit of 0 is the default.
	Search(ctx context.Context, term string, limit int, f filter.Args, auth *registry.AuthConfig) ([]registry.SearchResult, error)
}

// Transfers move images between the store and registries or archives. A progress
// function may be called from several goroutines, but not after the call has
// returned.
type Transfers interface {
	// ImagePull pulls one image, or with all every tag of the repository. ref
	// is normalized (docker.io/library/busybox:latest). auth is nil if the
	// client sent none.
	ImagePull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error
	// ImagePush pushes one image, or with all every tag of the repository.
	ImagePush(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error
	// ImageImport makes an image from the tar archive of a root filesystem and
	// returns its ID. If ref is empty the image has no name.
	ImageImport(ctx context.Context, src io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (string, error)
	ImageLoad(ctx context.Context, src io.Reader, platforms []ocispec.Platform, progress func(jsonstream.Message)) error
	// ImageSave calls begin before it writes anything.
	ImageSave(ctx context.Context, names []string, platforms []ocispec.Platform, begin func() io.Writer) error
}

// Descriptions are what is known of the images in the store.
type Descriptions interface {
	ImageList(ctx context.Context, o objects.ImageListOptions) ([]image.Summary, error)
	ImageInspect(ctx context.Context, ref string, platform *ocispec.Platform, manifests bool) (objects.ImageInspected, error)
	ImageHistory(ctx context.Context, ref string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error)
	// ImageAttestations lists the statements about an image that have one of the
	// predicate types, or all; bodies adds the statements themselves.
	ImageAttestations(ctx context.Context, ref string, platform *ocispec.Platform, types []string, bodies bool) ([]image.AttestationStatement, error)
}

// Backend is what this package needs of the engine. Errors carry a kind
// (containerd/errdefs). A nil platform means the host's.
type Backend interface {
	Registries
	Transfers
	Descriptions
	ImageTag(ctx context.Context, src, repoTag string) error
	ImageRemove(ctx context.Context, ref string, force, noprune bool) ([]image.DeleteResponse, error)
	// ImageRemovePlatforms removes the manifests of some platforms of an image.
	ImageRemovePlatforms(ctx context.Context, ref string, platforms []ocispec.Platform, force bool) ([]image.DeleteResponse, error)
	ImagesPrune(ctx context.Context, f filter.Args) (image.PruneReport, error)
}
