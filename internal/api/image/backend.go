// Package image serves the operations on images. It may not keep state.
package image

import (
	"context"
	"io"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/engine"
	"holdfast/internal/filter"
)

// Backend is what this package needs of the engine. Errors carry a kind
// (containerd/errdefs). A nil platform is the host's. A progress function may
// be called from several goroutines, and not after the call has returned.
type Backend interface {
	// ImagePull pulls one image, or with all every tag of the repository. ref
	// is normalized (docker.io/library/busybox:latest). auth is nil if the
	// client sent none.
	ImagePull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error
	// ImagePush pushes one image, or with all every tag of the repository.
	ImagePush(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error
	// ImageImport makes an image of the tar archive of a root filesystem and
	// returns its ID. An empty ref leaves it without a name.
	ImageImport(ctx context.Context, src io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (string, error)
	ImageLoad(ctx context.Context, src io.Reader, platforms []ocispec.Platform, progress func(jsonstream.Message)) error
	// ImageSave calls begin before it writes anything.
	ImageSave(ctx context.Context, names []string, platforms []ocispec.Platform, begin func() io.Writer) error
	ImageList(ctx context.Context, o engine.ImageListOptions) ([]image.Summary, error)
	ImageInspect(ctx context.Context, ref string, platform *ocispec.Platform, manifests bool) (image.InspectResponse, error)
	ImageHistory(ctx context.Context, ref string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error)
	ImageTag(ctx context.Context, src, repoTag string) error
	ImageRemove(ctx context.Context, ref string, force, noprune bool) ([]image.DeleteResponse, error)
	ImagesPrune(ctx context.Context, f filter.Args) (image.PruneReport, error)
}
