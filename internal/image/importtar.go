// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/gzip"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// Import makes an image of one layer from a tar of a root filesystem, plain or
// compressed with gzip, bzip2, xz or zstd. changes are Dockerfile instructions:
// CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL,
// USER, VOLUME, WORKDIR. Without ref the image has only its ID, which is
// returned. Bad input is an invalid argument, and nothing of it stays in the
// store.
func (s *Store) Import(ctx context.Context, src io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (string, error) {
	name := ""
	if ref != "" {
		named, err := tagTarget(ref)
		if err != nil {
			return "", err
		}
		name = reference.Named(named).String()
	}
	if platform == nil {
		p := platforms.DefaultSpec()
		platform = &p
	}
	var conf dockerspec.DockerOCIImage
	if err := applyChanges(&conf.Config, changes); err != nil {
		return "", err
	}
	var target ocispec.Descriptor
	err := s.leasing.withLease(ctx, func(ctx context.Context) error {
		layer, diff, err := s.contents.writeLayer(ctx, src)
		if err != nil {
			return err
		}
		now := timeNow()
		conf.Created = &now
		conf.Platform = platforms.Normalize(*platform)
		conf.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}}
		conf.History = []ocispec.History{{Created: &now, Comment: message}}
		if target, err = s.makeImage(ctx, name, conf, []ocispec.Descriptor{layer}, ""); err != nil {
			return fmt.Errorf("import: %w", err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	id := target.Digest
	if name != "" {
		s.catalog.emitEvent(ctx, "tag", id.String(), familiar(name), target)
	}
	s.catalog.emitEvent(ctx, "import", id.String(), id.String(), target)
	return id.String(), nil
}

// makeImage makes an image from a configuration and stored layers, unpacks it,
// and records it under a name or, if name is empty, without one. parent is the
// ID of the image that it was made from, or empty. The context has a lease.
func (s *Store) makeImage(ctx context.Context, name string, conf any, layers []ocispec.Descriptor, parent string) (ocispec.Descriptor, error) {
	none := ocispec.Descriptor{}
	confDesc, err := s.contents.writeJSON(ctx, ocispec.MediaTypeImageConfig, conf)
	if err != nil {
		return none, err
	}
	target, err := s.contents.writeJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    confDesc,
		Layers:    layers,
	})
	if err != nil {
		return none, err
	}
	if err := s.layers.unpackHere(ctx, target, s.layers.driver, newProgress(nil)); err != nil {
		return none, err
	}
	if err := s.contents.setParent(ctx, target, parent); err != nil {
		return none, err
	}
	if name == "" {
		return target, s.catalog.recordUnnamed(ctx, target)
	}
	_, err = s.catalog.record(ctx, name, target)
	return target, err
}

// writeLayer stores a tar, compressed. It returns the descriptor of the blob,
// and the digest of the uncompressed tar.
func (ct *contents) writeLayer(ctx context.Context, src io.Reader) (ocispec.Descriptor, digest.Digest, error) {
	fail := func(err error) (ocispec.Descriptor, digest.Digest, error) {
		return ocispec.Descriptor{}, "", fmt.Errorf("import: %w", err)
	}
	tar, err := decompressAny(src)
	if err != nil {
		return fail(errs.Invalid("the archive can't be read: %s", err))
	}
	defer tar.Close()
	ref := "import-" + rand.Text()
	w, err := content.OpenWriter(ctx, ct.content, content.WithRef(ref))
	if err != nil {
		return fail(err)
	}
	defer w.Close()
	zip, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return fail(err)
	}
	diff := digest.Canonical.Digester()
	in := &source{Reader: tar}
	n, err := io.Copy(io.MultiWriter(zip, diff.Hash()), in)
	if err == nil {
		err = zip.Close()
	}
	if err == nil && n == 0 {
		err = errs.Invalid("the archive is empty")
	}
	if err != nil {
		if aerr := ct.content.Abort(context.WithoutCancel(ctx), ref); aerr != nil && !errdefs.IsNotFound(aerr) {
			ct.log.Warn("a partly written import could not be removed", "error", aerr)
		}
		if in.err != nil {
			err = errs.Invalid("the archive can't be read: %s", in.err)
		}
		return fail(err)
	}
	st, err := w.Status()
	if err != nil {
		return fail(err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: w.Digest(), Size: st.Offset}
	if err := w.Commit(ctx, desc.Size, desc.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return fail(err)
	}
	return desc, diff.Digest(), nil
}

// source remembers read errors, to distinguish them from write errors.
type source struct {
	io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func (ct *contents) writeJSON(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return desc, content.WriteBlob(ctx, ct.content, "json-"+desc.Digest.String(), bytes.NewReader(raw), desc)
}
