// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// predicateType is the annotation of a statement's layer in a manifest that attests
// to another one (in-toto, as BuildKit stores it).
const predicateType = "in-toto.io/predicate-type"

// attesting returns the manifests of an index that attest to one of them.
func attesting(index []ocispec.Descriptor, to digest.Digest) (all []ocispec.Descriptor) {
	for _, m := range index {
		if m.Annotations["vnd.docker.reference.type"] == attestationType && m.Annotations["vnd.docker.reference.digest"] == to.String() {
			all = append(all, m)
		}
	}
	return all
}

// maxAttested bounds the statements that are fetched with an image, in bytes.
const maxAttested = 4 * maxDocument

// fetchAttestations fetches the manifests that attest to the image, with their
// statements. The image can be used without them, so a failure is only logged.
func (r *pull) fetchAttestations(ctx context.Context) {
	left := int64(maxAttested)
	for _, desc := range r.attests {
		if err := r.fetchAttestation(ctx, desc, &left); err != nil {
			r.contents.log.Warn("statements about an image were not fetched with it", "image", r.ref, "manifest", desc.Digest, "error", err)
		}
	}
}

// fetchAttestation fetches one manifest with its statements, which may have left
// bytes.
func (r *pull) fetchAttestation(ctx context.Context, desc ocispec.Descriptor, left *int64) error {
	if !images.IsManifestType(desc.MediaType) {
		return errs.Invalid("it is a %q, not a manifest", desc.MediaType)
	}
	if err := r.fetcher.fetch(ctx, desc); err != nil {
		return err
	}
	// What can't be read must not stay: the image's own documents are read with it.
	doc, err := r.contents.document(ctx, desc)
	if err != nil {
		return errors.Join(err, r.contents.discard(ctx, desc.Digest))
	}
	for _, child := range append([]ocispec.Descriptor{doc.manifest.Config}, doc.manifest.Layers...) {
		if *left -= child.Size; child.Size < 0 || *left < 0 {
			return errs.Invalid("the statements about the image have more than the %d bytes allowed", maxAttested)
		}
		if err := r.fetcher.fetch(ctx, child); err != nil {
			return err
		}
		if images.IsConfigType(child.MediaType) {
			if _, err := r.contents.document(ctx, child); err != nil {
				return errors.Join(err, r.contents.discard(ctx, child.Digest))
			}
		}
	}
	_, err = r.contents.label(ctx, desc)
	return err
}

// Attestations lists the in-toto statements about the variant of an image for a
// platform; nil means the host's. types are the predicate types to list; empty lists
// all. bodies adds the statements themselves, which are at most maxDocument bytes each.
// An image without statements has an empty list. Errors: not found (the image, or the
// variant, or a statement's content), invalid argument (a statement is not JSON).
func (ds *describer) Attestations(ctx context.Context, name string, platform *ocispec.Platform, types []string, bodies bool) ([]image.AttestationStatement, error) {
	ctx = ds.ctx(ctx)
	d, of, err := ds.variantFor(ctx, name, platform)
	if err != nil {
		return nil, err
	}
	out := []image.AttestationStatement{}
	for _, v := range d.variants {
		if len(attesting([]ocispec.Descriptor{v.desc}, of.desc.Digest)) == 0 {
			continue
		}
		if v.manifest == nil {
			continue // it was not pulled with the image
		}
		for _, layer := range v.manifest.Layers {
			kind := layer.Annotations[predicateType]
			if kind == "" || len(types) > 0 && !slices.Contains(types, kind) {
				continue
			}
			s := image.AttestationStatement{Descriptor: plain(layer), PredicateType: kind}
			s.Descriptor.Annotations = layer.Annotations
			if bodies {
				if s.Statement, err = ds.contents.statement(ctx, layer); err != nil {
					return nil, err
				}
			}
			out = append(out, s)
		}
	}
	return out, nil
}

// statement reads a statement.
func (ct *contents) statement(ctx context.Context, desc ocispec.Descriptor) (*json.RawMessage, error) {
	info, err := ct.content.Info(ctx, desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("statement %s: %w", desc.Digest, err)
	}
	if info.Size > maxDocument {
		return nil, errs.Invalid("statement %s has %d bytes, more than the %d allowed", desc.Digest, info.Size, maxDocument)
	}
	desc.Data = nil
	desc.Size = info.Size
	raw, err := content.ReadBlob(ctx, ct.content, desc)
	if err != nil {
		return nil, fmt.Errorf("statement %s: %w", desc.Digest, err)
	}
	if !json.Valid(raw) {
		return nil, errs.Invalid("statement %s is not JSON", desc.Digest)
	}
	return (*json.RawMessage)(&raw), nil
}
