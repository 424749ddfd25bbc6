// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// Distribution asks a registry which digest a reference has there and for which
// platforms, and stores nothing. Errors: as Pull.
func (rm *remote) Distribution(ctx context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error) {
	ctx = rm.ctx(ctx)
	none := registry.DistributionInspect{}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return none, errs.Invalid("%s", err)
	}
	named = reference.TagNameOnly(named)
	name, short := reference.FamiliarName(named), reference.FamiliarString(named)
	resolver := rm.registry.Load().resolver(auth)
	full, desc, err := resolver.Resolve(ctx, named.String())
	if err != nil {
		return none, errResolve(name, short, err)
	}
	remote, err := resolver.Fetcher(ctx, full)
	if err != nil {
		return none, errResolve(name, short, err)
	}
	doc, err := fetchDocument(ctx, remote, desc)
	if err != nil {
		return none, errPull(name, short, err)
	}
	out := registry.DistributionInspect{Descriptor: plain(desc), Platforms: []ocispec.Platform{}}
	if doc.index != nil {
		for _, m := range doc.index.Manifests {
			if m.Platform != nil {
				out.Platforms = append(out.Platforms, *m.Platform)
			}
		}
		return out, nil
	}
	conf := doc.manifest.Config
	if !images.IsConfigType(conf.MediaType) {
		return out, nil // an artifact has no platform
	}
	raw, err := fetchBytes(ctx, remote, conf)
	if err != nil {
		return none, errPull(name, short, err)
	}
	var platform ocispec.Platform
	if err := json.Unmarshal(raw, &platform); err != nil {
		return none, errs.Invalid("the config of %s can't be read: %s", short, err)
	}
	out.Platforms = append(out.Platforms, platform)
	return out, nil
}

// fetchDocument reads a manifest or an index from a registry.
func fetchDocument(ctx context.Context, remote remotes.Fetcher, desc ocispec.Descriptor) (document, error) {
	raw, err := fetchBytes(ctx, remote, desc)
	if err != nil {
		return document{}, err
	}
	doc, err := parseDocument(desc, raw)
	if err == nil && doc.index == nil && doc.manifest == nil {
		err = errs.Invalid("it is a %q, which is not an image", desc.MediaType)
	}
	return doc, err
}

// fetchBytes reads a document from a registry and verifies its digest.
func fetchBytes(ctx context.Context, remote remotes.Fetcher, desc ocispec.Descriptor) ([]byte, error) {
	if err := checkDescriptor(desc); err != nil {
		return nil, err
	}
	desc.URLs, desc.Data = nil, nil
	body, err := remote.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, desc.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) != desc.Size || desc.Digest.Algorithm().FromBytes(raw) != desc.Digest {
		return nil, fmt.Errorf("the registry sent content that does not match the digest %s", desc.Digest)
	}
	return raw, nil
}
