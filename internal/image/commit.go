// SPDX-License-Identifier: Apache-2.0

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

	"holdfast/internal/errs"
)

// Commit describes an image to be made from another one.
type Commit struct {
	Base            ocispec.Descriptor // a manifest
	Parent          string             // ID of the image that has the manifest
	Ref             string             // empty leaves the image without a name
	Author, Comment string             // the base's author if empty
	CreatedBy       string             // what made the layer, for the history
	Config          dockerspec.DockerOCIImageConfig
	Changes         []string // Dockerfile instructions, as for Import
}

// Commit makes an image from its base and one more layer, and returns its ID.
// layer writes the layer as a tar, and returns false if the layer is empty.
// Errors: not found if parts of the base are missing from the store.
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
	var target ocispec.Descriptor
	err := s.leasing.withLease(ctx, func(ctx context.Context) error {
		base, err := s.commitBase(ctx, c.Base)
		if err != nil {
			return err
		}
		added, diff, err := s.contents.changedLayer(ctx, layer)
		if err != nil {
			return err
		}
		now := timeNow()
		conf := *base.config
		if c.Author == "" {
			c.Author = conf.Author
		}
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
		if target, err = s.makeImage(ctx, name, conf, layers, c.Parent); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	id := target.Digest.String()
	s.catalog.emitEvent(ctx, "create", id, id, target)
	if name != "" {
		s.catalog.emitEvent(ctx, "tag", id, familiar(name), target)
	}
	return id, nil
}

// commitBase reads the base and keeps it from collection for as long as the
// context's lease lives.
func (s *Store) commitBase(ctx context.Context, desc ocispec.Descriptor) (variant, error) {
	gone := errs.NotFound("the image of the container is gone, and layers that the commit needs with it: pull or load it again, or export the container")
	if err := s.leasing.lend(ctx, desc); errdefs.IsNotFound(err) {
		return variant{}, gone
	} else if err != nil {
		return variant{}, err
	}
	all, err := s.contents.variants(ctx, desc)
	if err != nil {
		return variant{}, err
	}
	if len(all) != 1 || all[0].config == nil {
		return variant{}, gone
	}
	if whole, err := s.contents.hasAll(ctx, all[0]); err != nil || !whole {
		if err == nil {
			err = gone
		}
		return variant{}, err
	}
	return all[0], nil
}

// changedLayer stores the tar that layer writes. It returns nil for an empty
// layer.
func (ct *contents) changedLayer(ctx context.Context, layer func(io.Writer) (bool, error)) (*ocispec.Descriptor, digest.Digest, error) {
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
	desc, diff, err := ct.writeLayer(ctx, r)
	r.Close() // makes layer's writes fail if storing has failed
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

// ociLayer gives a layer the media type that OCI manifests use.
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
