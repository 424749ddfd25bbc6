// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	images "holdfast/internal/image"
)

// observedImages answers from containers' records. The Observer calls no other method
// of Images, whose database belongs to the daemon.
type observedImages struct {
	Images // nil
	e      *Engine
}

// Resolve finds an image by the records of containers that were created from that
// name or ID.
func (o observedImages) Resolve(_ context.Context, name string, _ *ocispec.Platform) (images.Image, error) {
	want := familiar(name)
	var newest *view
	for _, a := range o.e.index.all() {
		v := a.view.Load()
		if (familiar(v.req.Config.Image) == want || v.spec.Image.ID == name) && (newest == nil || v.spec.Created.After(newest.spec.Created)) {
			newest = v
		}
	}
	if newest == nil {
		return images.Image{}, errdefs.ErrNotFound.WithMessage("No such image: " + name)
	}
	return images.Image{ID: newest.spec.Image.ID}, nil
}

// ReferenceMatcher accepts what each container's record gives: only a daemon's
// image database knows more.
func (observedImages) ReferenceMatcher(context.Context) (func(ref, id string) bool, error) {
	return func(string, string) bool { return true }, nil
}

func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.TagNameOnly(named).String()
}

// RootfsUsage is the size in bytes of what a container has written, if the storage
// driver stores that in a separate layer.
func (observedImages) RootfsUsage(dir string) (int64, error) {
	usage, err := images.LayerUsage(filepath.Clean(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, needsDaemon("the size of a container on this storage driver")
	}
	return usage, err
}
