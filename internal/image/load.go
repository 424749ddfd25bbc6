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
	"github.com/moby/go-archive/compression"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Load takes images from an archive of docker save or a tar of an OCI layout,
// compressed or not. platforms picks among the manifests of each image; none
// takes the host's, or what there is. An image without a name is kept under
// its ID. Nothing is kept of an archive that can't be read.
func (s *Store) Load(ctx context.Context, src io.Reader, wanted []ocispec.Platform, fn func(jsonstream.Message)) error {
	p := newProgress(fn)
	return s.withLease(ctx, func(ctx context.Context) error {
		src := bufio.NewReader(src)
		if _, err := src.Peek(1); err == io.EOF {
			return errInvalid("load: there is no archive: the input is empty")
		}
		tar, err := compression.DecompressStream(src)
		if err != nil {
			return errInvalid("load: the archive can't be read: %s", err)
		}
		defer tar.Close()
		desc, err := archive.ImportIndex(ctx, s.content, tar)
		if err != nil {
			if isHostError(err) || ctx.Err() != nil {
				return fmt.Errorf("load: %w", err)
			}
			return errInvalid("load: the archive is neither of docker save nor an OCI layout: %s", err)
		}
		// ImportIndex leaves the rest of the stream, which the client still
		// writes.
		if _, err := io.Copy(io.Discard, tar); err != nil {
			return errInvalid("load: the archive can't be read to its end: %s", err)
		}
		doc, err := s.document(ctx, desc)
		if err != nil {
			return err
		}
		if len(doc.index.Manifests) == 0 {
			return errInvalid("load: there is no image in the archive")
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
		return errInvalid("load: %s is a %q, which is not an image", called, target.MediaType)
	}
	all, err := s.variants(ctx, target)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	var picked []variant
	if len(wanted) == 0 {
		v, err := s.choose(ctx, called, all, nil)
		if errdefs.IsNotFound(err) {
			return errInvalid("load: the archive lacks layers of %s", called)
		} else if err != nil {
			return fmt.Errorf("load: %w", err)
		}
		picked = append(picked, v)
	}
	for i := range wanted {
		v, err := s.choose(ctx, called, all, &wanted[i])
		if errdefs.IsNotFound(err) {
			return errNotFound("load: the archive has no %s of %s", platforms.Format(wanted[i]), called)
		} else if err != nil {
			return fmt.Errorf("load: %w", err)
		}
		picked = append(picked, v)
	}
	if err := s.labelTree(ctx, target); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	for _, v := range picked {
		if err := s.unpackHere(ctx, v.desc, s.driver, p); err != nil {
			return fmt.Errorf("load %s: %w", called, err)
		}
	}
	record := name
	if record == "" {
		s.names.Lock()
		err = s.keep(ctx, plain(target), "")
		s.names.Unlock()
	} else {
		_, err = s.record(ctx, record, target)
	}
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if name == "" {
		p.stream("Loaded image ID: " + target.Digest.String() + "\n")
	} else {
		p.stream("Loaded image: " + familiar(name) + "\n")
	}
	s.onEvent("load", target.Digest.String(), familiar(called), nil)
	return nil
}

// loadedName reads an image's name from its descriptor: containerd's and
// Docker's annotation, or the OCI one where it holds more than a tag.
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
		return "", errInvalid("load: the archive names an image %q: %s", name, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

// plain is a descriptor without what was said about it where it was found.
func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}
