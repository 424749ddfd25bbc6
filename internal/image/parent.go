// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// parentLabel is a label on the target of a committed image. Its value is the
// ID of the image that the container was made from. The label holds nothing:
// the parent may have been removed.
const parentLabel = "holdfast.parent"

func (ct *contents) setParent(ctx context.Context, target ocispec.Descriptor, parent string) error {
	if parent == "" {
		return nil
	}
	_, err := ct.content.Update(ctx, content.Info{Digest: target.Digest, Labels: map[string]string{parentLabel: parent}}, "labels."+parentLabel)
	return err
}

// parent returns the ID of the image that id was committed from, or an empty
// string.
func (ct *contents) parent(ctx context.Context, id digest.Digest) (string, error) {
	info, err := ct.content.Info(ctx, id)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	return info.Labels[parentLabel], err
}

// parents lists the images, and maps the ID of each committed image to the ID
// of its parent.
func (ca *catalog) parents(ctx context.Context) (all []entry, of map[string]string, err error) {
	if all, err = ca.entries(ctx); err != nil {
		return nil, nil, err
	}
	of = map[string]string{}
	for _, e := range all {
		p, err := ca.contents.parent(ctx, e.target.Digest)
		if err != nil {
			return nil, nil, err
		}
		if p != "" {
			of[e.id()] = p
		}
	}
	return all, of, nil
}

// ancestors returns the image's parent, the parent's parent and so on, as far
// as they are in the store.
func ancestors(all []entry, of map[string]string, id string) []entry {
	var out []entry
	// Digests can't form a cycle, but labels can.
	for range all {
		i := slices.IndexFunc(all, func(e entry) bool { return e.id() == of[id] })
		if i < 0 {
			break
		}
		out = append(out, all[i])
		id = all[i].id()
	}
	return out
}

// deleteParents removes the ancestors of a removed image that are no longer
// needed: those without a name, a container or another child. It stops at the
// first one that is needed. The caller holds names.
func (ca *catalog) deleteParents(ctx context.Context, removed string, above []entry, of map[string]string, users func(imageID string) []User) ([]image.DeleteResponse, error) {
	var out []image.DeleteResponse
	delete(of, removed)
	for _, e := range above {
		if len(e.names) > 0 || users != nil && len(users(e.id())) > 0 {
			break
		}
		needed := false
		for _, p := range of {
			needed = needed || p == e.id()
		}
		if needed {
			break
		}
		gone, err := ca.delete(ctx, match{entry: e})
		out = append(out, gone...)
		if err != nil {
			return out, err
		}
		delete(of, e.id())
	}
	return out, nil
}
