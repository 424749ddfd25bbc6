// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// Load loads images from an archive of docker save or a tar of an OCI layout,
// compressed or not. platforms selects among the manifests of each image.
// Without it the host's is loaded, or any if there is none for the host. An
// image without a name is kept under its ID. If the archive can't be read,
// nothing of it is kept.
func (s *Store) Load(ctx context.Context, src io.Reader, wanted []ocispec.Platform, fn func(jsonstream.Message)) error {
	p := newProgress(fn)
	return s.leasing.withLease(ctx, func(ctx context.Context) error {
		src := bufio.NewReader(src)
		if _, err := src.Peek(1); err == io.EOF {
			return errs.Invalid("load: there is no archive: the input is empty")
		}
		tar, err := decompressAny(src)
		if err != nil {
			return errs.Invalid("load: the archive can't be read: %s", err)
		}
		defer tar.Close()
		safe := sifted(tar)
		defer safe.Close()
		desc, err := archive.ImportIndex(ctx, smallDocuments{s.contents.content}, safe)
		if err != nil {
			return errArchive(ctx, err)
		}
		// ImportIndex does not read the rest of the stream, but the client
		// still writes it.
		if _, err := io.Copy(io.Discard, safe); err != nil {
			return errs.Invalid("load: the archive can't be read to its end: %s", err)
		}
		doc, err := s.contents.document(ctx, desc)
		if err != nil {
			return err
		}
		if len(doc.index.Manifests) == 0 {
			return errs.Invalid("load: there is no image in the archive")
		}
		for _, target := range doc.index.Manifests {
			if err := s.loadOne(ctx, target, wanted, p); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Store) loadOne(ctx context.Context, target ocispec.Descriptor, wanted []ocispec.Platform, p *progress) error {
	name, err := loadedName(target.Annotations)
	if err != nil {
		return err
	}
	called := name
	if called == "" {
		called = target.Digest.String()
	}
	if !images.IsIndexType(target.MediaType) && !images.IsManifestType(target.MediaType) {
		return errs.Invalid("load: %s is a %q, which is not an image", called, target.MediaType)
	}
	all, err := s.contents.variants(ctx, target)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	var picked []variant
	if len(wanted) == 0 {
		v, err := s.layers.choose(ctx, called, all, nil)
		if errdefs.IsNotFound(err) {
			return errs.Invalid("load: the archive lacks layers of %s", called)
		} else if err != nil {
			return fmt.Errorf("load: %w", err)
		}
		picked = append(picked, v)
	}
	for i := range wanted {
		v, err := s.layers.choose(ctx, called, all, &wanted[i])
		if errdefs.IsNotFound(err) {
			return errs.NotFound("load: the archive has no %s of %s", platforms.Format(wanted[i]), called)
		} else if err != nil {
			return fmt.Errorf("load: %w", err)
		}
		picked = append(picked, v)
	}
	if err := s.contents.labelTree(ctx, target); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	for _, v := range picked {
		if err := s.layers.unpackHere(ctx, v.desc, s.layers.driver, p); err != nil {
			return fmt.Errorf("load %s: %w", called, err)
		}
	}
	record := name
	if record == "" {
		err = s.catalog.recordUnnamed(ctx, plain(target))
	} else {
		_, err = s.catalog.record(ctx, record, target)
	}
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if name == "" {
		p.stream("Loaded image ID: " + target.Digest.String() + "\n")
	} else {
		p.stream("Loaded image: " + familiar(name) + "\n")
	}
	s.catalog.emitEvent(ctx, "load", target.Digest.String(), target.Digest.String(), target)
	return nil
}

// loadedName reads an image's name from its descriptor: from containerd's or
// Docker's annotation, or from the OCI one if that has more than a tag.
func loadedName(annotations map[string]string) (string, error) {
	name := annotations[images.AnnotationImageName]
	if name == "" {
		if ref := annotations[ocispec.AnnotationRefName]; strings.ContainsAny(ref, ":/") {
			name = ref
		}
	}
	if name == "" {
		return "", nil
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", errs.Invalid("load: the archive names an image %q: %s", name, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

// plain is a descriptor without the annotations of the place where it was
// found.
func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}
