package engine

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/container"
	"holdfast/internal/filter"
	images "holdfast/internal/image"
)

// The image calls pass to the image store. What they add is what the store
// can't know: which containers use an image, and the journal.

// ImagePull pulls an image, telling its progress.
func (e *Engine) ImagePull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error {
	return e.images.Pull(ctx, ref, platform, auth, all, progress)
}

// ImagePush sends an image to its registry, telling its progress.
func (e *Engine) ImagePush(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error {
	return e.images.Push(ctx, ref, platform, auth, all, progress)
}

// ImageImport makes an image of a root file system's tar.
func (e *Engine) ImageImport(ctx context.Context, src io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (string, error) {
	return e.images.Import(ctx, src, ref, message, changes, platform)
}

// ImageLoad loads images from an archive.
func (e *Engine) ImageLoad(ctx context.Context, src io.Reader, platforms []ocispec.Platform, progress func(jsonstream.Message)) error {
	return e.images.Load(ctx, src, platforms, progress)
}

// ImageSave writes images as an archive.
func (e *Engine) ImageSave(ctx context.Context, names []string, platforms []ocispec.Platform, begin func() io.Writer) error {
	return e.images.Save(ctx, names, platforms, begin)
}

// ImageList lists images.
func (e *Engine) ImageList(ctx context.Context, o ImageListOptions) ([]image.Summary, error) {
	return e.images.List(ctx, images.ListOptions{All: o.All, Manifests: o.Manifests, SharedSize: o.SharedSize, Filters: o.Filters})
}

// ImageInspect tells all about an image.
func (e *Engine) ImageInspect(ctx context.Context, ref string, platform *ocispec.Platform, manifests bool) (image.InspectResponse, error) {
	r, err := e.images.Inspect(ctx, ref, platform)
	if !manifests {
		r.Manifests = nil
	}
	return r, err
}

// ImageHistory tells how an image was made.
func (e *Engine) ImageHistory(ctx context.Context, ref string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	return e.images.History(ctx, ref, platform)
}

// ImageTag gives an image another name.
func (e *Engine) ImageTag(ctx context.Context, src, repoTag string) error {
	return e.images.Tag(ctx, src, repoTag)
}

// ImageRemove removes an image's name, and the image with its last one.
func (e *Engine) ImageRemove(ctx context.Context, ref string, force, noprune bool) ([]image.DeleteResponse, error) {
	return e.images.Remove(ctx, ref, force, !noprune, e.imageUsers)
}

// ImagesPrune removes the images that no container uses: those without a name,
// or with dangling=false all.
func (e *Engine) ImagesPrune(ctx context.Context, f filter.Args) (image.PruneReport, error) {
	return e.images.Prune(ctx, f, func(id string) bool { return len(e.imageUsers(id)) > 0 })
}

// imageUsers are the containers of an image.
func (e *Engine) imageUsers(id string) []images.User {
	var users []images.User
	for _, a := range e.index.all() {
		v := a.view.Load()
		if v.spec.Image.ID == id && v.state != container.Removing {
			users = append(users, images.User{ContainerID: a.id, Running: v.state.Alive()})
		}
	}
	return users
}

// imagesUnused lets the image store collect what a removed container held.
func (e *Engine) imagesUnused(container.Image) {
	var held []string
	seen := map[string]bool{}
	for _, a := range e.index.all() {
		if s := a.view.Load().spec.Image.Snapshot; !seen[s] {
			seen[s] = true
			held = append(held, s)
		}
	}
	if err := e.images.Hold(context.Background(), held); err != nil {
		e.log.Warn("image holds not brought up to date", "error", err)
	}
}

// ImageEvent journals what the image store did.
func (e *Engine) ImageEvent(action, id, name string, attributes map[string]string) {
	at := map[string]string{}
	for k, v := range attributes {
		at[k] = v
	}
	if name != "" {
		at["name"] = name
	}
	e.emit("image", action, id, at, time.Now())
}

// Auth asks a registry whether it takes the credentials.
func (e *Engine) Auth(ctx context.Context, auth registry.AuthConfig) (registry.AuthResponse, error) {
	token, err := e.images.Auth(ctx, auth)
	if err != nil {
		if errors.Is(err, errdefs.ErrUnauthenticated) {
			return registry.AuthResponse{}, errdefs.ErrUnauthenticated.WithMessage(err.Error())
		}
		return registry.AuthResponse{}, err
	}
	return registry.AuthResponse{Status: "Login Succeeded", IdentityToken: token}, nil
}
