package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Commit is an image to be made of another one.
type Commit struct {
	Base            ocispec.Descriptor // a manifest
	Ref             string             // empty leaves the image without a name
	Author, Comment string
	CreatedBy       string // what made the layer, for the history
	Config          dockerspec.DockerOCIImageConfig
	Changes         []string // Dockerfile instructions, as for Import
}

// Commit makes an image of its base and one layer more, and returns its ID.
// layer writes the layer as tar, and reports false where there is nothing in it.
// Errors: not found when the base is not here whole.
func (s *Store) Commit(ctx context.Context, c Commit, layer func(io.Writer) (bool, error)) (string, error) {
	name := ""
	if c.Ref != "" {
		named, err := tagTarget(c.Ref)
		if err != nil {
			return "", err
		}
		name = reference.Named(named).String()
	}
	if err := applyChanges(&c.Config, c.Changes); err != nil {
		return "", err
	}
	var id digest.Digest
	err := s.withLease(ctx, func(ctx context.Context) error {
		base, err := s.commitBase(ctx, c.Base)
		if err != nil {
			return err
		}
		added, diff, err := s.changedLayer(ctx, layer)
		if err != nil {
			return err
		}
		now := timeNow()
		conf := *base.config
		conf.Created, conf.Author, conf.Config = &now, c.Author, c.Config
		conf.History = append(conf.History[:len(conf.History):len(conf.History)], ocispec.History{
			Created: &now, CreatedBy: c.CreatedBy, Author: c.Author, Comment: c.Comment, EmptyLayer: added == nil,
		})
		var layers []ocispec.Descriptor
		for _, l := range base.manifest.Layers {
			layers = append(layers, ociLayer(l))
		}
		if added != nil {
			layers = append(layers, *added)
			conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs[:len(conf.RootFS.DiffIDs):len(conf.RootFS.DiffIDs)], diff)
		}
		if id, err = s.makeImage(ctx, name, conf, layers); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	s.onEvent("create", id.String(), familiar(name), nil)
	return id.String(), nil
}

// commitBase reads the base and keeps it for as long as the context's lease is.
func (s *Store) commitBase(ctx context.Context, desc ocispec.Descriptor) (variant, error) {
	gone := errNotFound("the image of the container is gone, and with it layers of what is to be committed: pull or load it again, or export the container")
	if err := s.lend(ctx, desc); errdefs.IsNotFound(err) {
		return variant{}, gone
	} else if err != nil {
		return variant{}, err
	}
	all, err := s.variants(ctx, desc)
	if err != nil {
		return variant{}, err
	}
	if len(all) != 1 || all[0].config == nil {
		return variant{}, gone
	}
	if whole, err := s.hasAll(ctx, all[0]); err != nil || !whole {
		if err == nil {
			err = gone
		}
		return variant{}, err
	}
	return all[0], nil
}

// changedLayer stores what layer writes; nil is an empty layer.
func (s *Store) changedLayer(ctx context.Context, layer func(io.Writer) (bool, error)) (*ocispec.Descriptor, digest.Digest, error) {
	r, w := io.Pipe()
	type end struct {
		any bool
		err error
	}
	ended := make(chan end, 1)
	go func() {
		any, err := layer(w)
		w.CloseWithError(err)
		ended <- end{any, err}
	}()
	desc, diff, err := s.writeLayer(ctx, r)
	r.Close() // where storing failed, writing does now
	e := <-ended
	switch {
	case err != nil && (e.err == nil || errors.Is(e.err, io.ErrClosedPipe)):
		return nil, "", err
	case e.err != nil:
		return nil, "", fmt.Errorf("commit: %w", e.err)
	case !e.any:
		return nil, "", nil
	}
	return &desc, diff, nil
}

// ociLayer names a layer's media type as an OCI manifest does.
func ociLayer(d ocispec.Descriptor) ocispec.Descriptor {
	switch d.MediaType {
	case images.MediaTypeDockerSchema2Layer:
		d.MediaType = ocispec.MediaTypeImageLayer
	case images.MediaTypeDockerSchema2LayerGzip:
		d.MediaType = ocispec.MediaTypeImageLayerGzip
	case images.MediaTypeDockerSchema2LayerZstd:
		d.MediaType = ocispec.MediaTypeImageLayerZstd
	}
	return d
}
