// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// RemovePlatforms removes the manifests for the given platforms from an image.
// The image keeps its names and its other platforms, and a pull brings back the
// removed ones. users lists the containers of a manifest, which prevent its
// removal unless force is set; their root file systems stay in any case.
// Errors: not found for a platform that the stored image does not have;
// conflict.
func (ca *catalog) RemovePlatforms(ctx context.Context, name string, wanted []ocispec.Platform, force bool, users func(manifest digest.Digest) []string) ([]image.DeleteResponse, error) {
	ctx = ca.ctx(ctx)
	ca.names.Lock()
	defer ca.names.Unlock()
	m, err := ca.find(ctx, name)
	if err != nil {
		return nil, err
	}
	all, err := ca.contents.variants(ctx, m.target)
	if err != nil {
		return nil, err
	}
	going, staying := splitPlatforms(all, wanted)
	for _, p := range wanted {
		if !slices.ContainsFunc(going, func(v variant) bool { return platforms.OnlyStrict(p).Match(v.platform) }) {
			return nil, errs.NotFound("image with reference %s was found but does not provide the specified platform (%s)", name, platforms.Format(p))
		}
	}
	if !force && users != nil {
		for _, v := range going {
			if by := users(v.desc.Digest); len(by) > 0 {
				return nil, errs.Conflict("conflict: unable to delete platform %s of %s (must be forced) - container %s is using it", platforms.Format(v.platform), name, shorten(by[0]))
			}
		}
	}
	if len(going) == 1 && going[0].desc.Digest == m.target.Digest {
		return ca.delete(ctx, m) // it has only this manifest
	}
	needed, err := ca.neededBlobs(ctx, m.target.Digest, staying)
	if err != nil {
		return nil, err
	}
	var out []image.DeleteResponse
	for _, v := range going {
		for _, d := range v.blobs() {
			if needed[d] {
				continue
			}
			ca.contents.docs.drop(d)
			if err := ca.contents.content.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
				return out, err
			}
		}
		out = append(out, image.DeleteResponse{Deleted: v.desc.Digest.String()})
	}
	ca.requests.collectSoon()
	return out, nil
}

// splitPlatforms splits the manifests of an image into those for the platforms and
// the others.
func splitPlatforms(all []variant, wanted []ocispec.Platform) (of, others []variant) {
	for _, v := range all {
		if !v.attestation && v.manifest != nil && slices.ContainsFunc(wanted, func(p ocispec.Platform) bool { return platforms.OnlyStrict(p).Match(v.platform) }) {
			of = append(of, v)
		} else {
			others = append(others, v)
		}
	}
	return of, others
}

// blobs are the digests of the variant's manifest and, if it is in the store, of
// its config and layers.
func (v variant) blobs() []digest.Digest {
	list := []digest.Digest{v.desc.Digest}
	if v.manifest != nil {
		list = append(list, v.manifest.Config.Digest)
		for _, l := range v.manifest.Layers {
			list = append(list, l.Digest)
		}
	}
	return list
}

// neededBlobs returns the blobs of the variants that an image retains, and of all
// other images.
func (ca *catalog) neededBlobs(ctx context.Context, target digest.Digest, staying []variant) (map[digest.Digest]bool, error) {
	needed := map[digest.Digest]bool{}
	add := func(variants []variant) {
		for _, v := range variants {
			for _, d := range v.blobs() {
				needed[d] = true
			}
		}
	}
	add(staying)
	entries, err := ca.entries(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.target.Digest == target {
			continue
		}
		others, err := ca.contents.variants(ctx, e.target)
		if err != nil {
			return nil, err // an image that can't be read may need any blob
		}
		add(others)
	}
	return needed, nil
}
