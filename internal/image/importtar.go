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
	"github.com/moby/go-archive/compression"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Import makes an image of one layer from a tar of a root filesystem, plain or
// compressed with gzip, bzip2, xz or zstd. changes are Dockerfile instructions:
// CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL,
// USER, VOLUME, WORKDIR. Without ref the image has only its ID, which is
// returned. Bad input is an invalid argument and leaves nothing.
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
	var id digest.Digest
	err := s.withLease(ctx, func(ctx context.Context) error {
		layer, diff, err := s.writeLayer(ctx, src)
		if err != nil {
			return err
		}
		now := timeNow()
		conf.Created = &now
		conf.Platform = platforms.Normalize(*platform)
		conf.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}}
		conf.History = []ocispec.History{{Created: &now, Comment: message}}
		if id, err = s.makeImage(ctx, name, conf, []ocispec.Descriptor{layer}); err != nil {
			return fmt.Errorf("import: %w", err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	s.onEvent("import", id.String(), familiar(name), nil)
	return id.String(), nil
}

// makeImage makes an image of a configuration and layers that are stored, unpacks
// it, and keeps it under a name, or without one. The context has a lease.
func (s *Store) makeImage(ctx context.Context, name string, conf any, layers []ocispec.Descriptor) (digest.Digest, error) {
	confDesc, err := s.writeJSON(ctx, ocispec.MediaTypeImageConfig, conf)
	if err != nil {
		return "", err
	}
	target, err := s.writeJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    confDesc,
		Layers:    layers,
	})
	if err != nil {
		return "", err
	}
	if err := s.unpackHere(ctx, target, s.driver, newProgress(nil)); err != nil {
		return "", err
	}
	if name == "" {
		s.names.Lock()
		defer s.names.Unlock()
		return target.Digest, s.keep(ctx, target, "")
	}
	_, err = s.record(ctx, name, target)
	return target.Digest, err
}

// writeLayer stores a tar, compressed, and returns it and the digest of the tar
// itself.
func (s *Store) writeLayer(ctx context.Context, src io.Reader) (ocispec.Descriptor, digest.Digest, error) {
	fail := func(err error) (ocispec.Descriptor, digest.Digest, error) {
		return ocispec.Descriptor{}, "", fmt.Errorf("import: %w", err)
	}
	tar, err := compression.DecompressStream(src)
	if err != nil {
		return fail(errInvalid("the archive can't be read: %s", err))
	}
	defer tar.Close()
	ref := "import-" + rand.Text()
	w, err := content.OpenWriter(ctx, s.content, content.WithRef(ref))
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
		err = errInvalid("the archive is empty")
	}
	if err != nil {
		if aerr := s.content.Abort(context.WithoutCancel(ctx), ref); aerr != nil && !errdefs.IsNotFound(aerr) {
			s.log.Warn("half an import was left behind", "error", aerr)
		}
		if in.err != nil {
			err = errInvalid("the archive can't be read: %s", in.err)
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

// source remembers that reading failed, as opposed to writing.
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

func (s *Store) writeJSON(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return desc, content.WriteBlob(ctx, s.content, "json-"+desc.Digest.String(), bytes.NewReader(raw), desc)
}
