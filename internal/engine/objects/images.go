// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/filter"
	"holdfast/internal/image"
)

// Images implements the API's calls for images.
type Images struct {
	store      ImageStore
	containers Containers
	emit       Emit
}

// NewImages returns the images in a store.
func NewImages(store ImageStore, containers Containers, emit Emit) *Images {
	return &Images{store, containers, emit}
}

// ImageTransfer moves images between the store and registries or archives.
type ImageTransfer interface {
	Pull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error
	Push(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error
	Import(ctx context.Context, src io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (string, error)
	Load(ctx context.Context, src io.Reader, platforms []ocispec.Platform, progress func(jsonstream.Message)) error
	Save(ctx context.Context, names []string, platforms []ocispec.Platform, begin func() io.Writer) error
	Auth(ctx context.Context, auth registry.AuthConfig) (string, error)
	Distribution(ctx context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error)
	Search(ctx context.Context, term string, limit int, f filter.Args, auth *registry.AuthConfig) ([]registry.SearchResult, error)
}

// ImageStore is the image store as the API's calls need it.
type ImageStore interface {
	ImageTransfer
	List(ctx context.Context, o image.ListOptions) ([]api.Summary, error)
	Inspect(ctx context.Context, name string, platform *ocispec.Platform, users func(manifest digest.Digest) []string) (image.Inspected, error)
	History(ctx context.Context, name string, platform *ocispec.Platform) ([]api.HistoryResponseItem, error)
	Attestations(ctx context.Context, name string, platform *ocispec.Platform, types []string, bodies bool) ([]api.AttestationStatement, error)
	Tag(ctx context.Context, src, dst string) error
	Remove(ctx context.Context, name string, force, prune bool, users func(imageID string) []image.User) ([]api.DeleteResponse, error)
	RemovePlatforms(ctx context.Context, name string, platforms []ocispec.Platform, force bool, users func(manifest digest.Digest) []string) ([]api.DeleteResponse, error)
	Prune(ctx context.Context, f filter.Args, users func(imageID string) []image.User) (api.PruneReport, error)
	DiskUsage(ctx context.Context, containers func(imageID string) int64) (api.DiskUsage, error)
}

// ImagePull pulls an image and reports the progress.
func (o *Images) ImagePull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error {
	return o.store.Pull(ctx, ref, platform, auth, all, progress)
}

// ImagePush pushes an image to its registry and reports the progress.
func (o *Images) ImagePush(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error {
	return o.store.Push(ctx, ref, platform, auth, all, progress)
}

// ImageImport creates an image from a tar of a root file system.
func (o *Images) ImageImport(ctx context.Context, src io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (string, error) {
	return o.store.Import(ctx, src, ref, message, changes, platform)
}

// ImageLoad loads images from an archive.
func (o *Images) ImageLoad(ctx context.Context, src io.Reader, platforms []ocispec.Platform, progress func(jsonstream.Message)) error {
	return o.store.Load(ctx, src, platforms, progress)
}

// ImageSave writes images as an archive.
func (o *Images) ImageSave(ctx context.Context, names []string, platforms []ocispec.Platform, begin func() io.Writer) error {
	return o.store.Save(ctx, names, platforms, begin)
}

// ImageListOptions are the arguments of GET /images/json.
type ImageListOptions struct {
	All        bool // include images without a name
	Manifests  bool // fill Summary.Manifests
	SharedSize bool // fill Summary.SharedSize, which is -1 otherwise
	Filters    filter.Args
}

// ImageList lists images.
func (o *Images) ImageList(ctx context.Context, lo ImageListOptions) ([]api.Summary, error) {
	return o.store.List(ctx, image.ListOptions{
		All: lo.All, Manifests: lo.Manifests, SharedSize: lo.SharedSize, Filters: lo.Filters,
		Containers: o.count, Users: o.containers.OfManifest,
	})
}

// ImageInspected is the answer of ImageInspect.
type ImageInspected = image.Inspected

// ImageInspect returns an image's configuration and metadata.
func (o *Images) ImageInspect(ctx context.Context, ref string, platform *ocispec.Platform, manifests bool) (ImageInspected, error) {
	r, err := o.store.Inspect(ctx, ref, platform, o.containers.OfManifest)
	if !manifests {
		r.Manifests = nil
	}
	return r, err
}

// ImageHistory returns the history of an image's layers.
func (o *Images) ImageHistory(ctx context.Context, ref string, platform *ocispec.Platform) ([]api.HistoryResponseItem, error) {
	return o.store.History(ctx, ref, platform)
}

// ImageAttestations lists the statements about an image; see image.Store.
func (o *Images) ImageAttestations(ctx context.Context, ref string, platform *ocispec.Platform, types []string, bodies bool) ([]api.AttestationStatement, error) {
	return o.store.Attestations(ctx, ref, platform, types, bodies)
}

// ImageTag gives an image another name.
func (o *Images) ImageTag(ctx context.Context, src, repoTag string) error {
	return o.store.Tag(ctx, src, repoTag)
}

// ImageRemove removes an image's name, and the image with its last one.
func (o *Images) ImageRemove(ctx context.Context, ref string, force, noprune bool) ([]api.DeleteResponse, error) {
	return o.store.Remove(ctx, ref, force, !noprune, o.containers.OfImage)
}

// ImageRemovePlatforms removes the manifests of some platforms, and the content that
// only these need.
func (o *Images) ImageRemovePlatforms(ctx context.Context, ref string, platforms []ocispec.Platform, force bool) ([]api.DeleteResponse, error) {
	return o.store.RemovePlatforms(ctx, ref, platforms, force, o.containers.OfManifest)
}

// Search asks a registry for repositories; see image.Store.
func (o *Images) Search(ctx context.Context, term string, limit int, f filter.Args, auth *registry.AuthConfig) ([]registry.SearchResult, error) {
	return o.store.Search(ctx, term, limit, f, auth)
}

// Distribution asks a registry to which descriptor a reference resolves.
func (o *Images) Distribution(ctx context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error) {
	return o.store.Distribution(ctx, ref, auth)
}

// ImagesPrune removes images that no container uses: those without a name, or with
// dangling=false all.
func (o *Images) ImagesPrune(ctx context.Context, f filter.Args) (api.PruneReport, error) {
	return o.store.Prune(ctx, f, o.containers.OfImage)
}

// ImageEvent journals an event of the image store.
func (o *Images) ImageEvent(action, id, name string, attributes map[string]string) {
	at := map[string]string{}
	for k, v := range attributes {
		at[k] = v
	}
	if name != "" {
		at["name"] = name
	}
	o.emit("image", action, id, at)
}

// Auth checks credentials with a registry.
func (o *Images) Auth(ctx context.Context, auth registry.AuthConfig) (registry.AuthResponse, error) {
	token, err := o.store.Auth(ctx, auth)
	if err != nil {
		if errors.Is(err, errdefs.ErrUnauthenticated) {
			return registry.AuthResponse{}, errdefs.ErrUnauthenticated.WithMessage(err.Error())
		}
		return registry.AuthResponse{}, err
	}
	return registry.AuthResponse{Status: "Login Succeeded", IdentityToken: token}, nil
}

// Count returns the number of images, counted by ID.
func (o *Images) Count(ctx context.Context) (int, error) {
	list, err := o.store.List(ctx, image.ListOptions{All: true})
	return len(list), err
}

// ImagesUsage returns the disk usage of all images.
func (o *Images) ImagesUsage(ctx context.Context) (api.DiskUsage, error) {
	return o.store.DiskUsage(ctx, o.count)
}

// count returns the number of containers that use an image.
func (o *Images) count(id string) int64 { return int64(len(o.containers.OfImage(id))) }
