// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
)

const (
	// pulledLabel is a label on the target of a pulled image: the repositories
	// from which it was pulled, with their registries, separated by commas.
	pulledLabel = "holdfast.pulled-from"
	// maxLabel is the largest label that containerd's metadata accepts, key and
	// value together.
	maxLabel = 4096
)

// identity returns from where an image was pulled, or nil if that is unknown.
func (ct *contents) identity(ctx context.Context, target ocispec.Descriptor) (*image.Identity, error) {
	info, err := ct.content.Info(ctx, target.Digest)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	repositories := listed(info.Labels[pulledLabel])
	if len(repositories) == 0 {
		return nil, nil
	}
	slices.Sort(repositories)
	var from []image.PullIdentity
	for _, r := range repositories {
		from = append(from, image.PullIdentity{Repository: r})
	}
	return &image.Identity{Pull: from}, nil
}

func listed(label string) []string {
	return strings.FieldsFunc(label, func(r rune) bool { return r == ',' })
}

// pulledFrom records that an image was pulled from a repository.
func (ct *contents) pulledFrom(ctx context.Context, target ocispec.Descriptor, named reference.Named) error {
	if err := ct.sourced(ctx, target, named); err != nil {
		return err
	}
	info, err := ct.content.Info(ctx, target.Digest)
	if err != nil {
		return err
	}
	have := listed(info.Labels[pulledLabel])
	if slices.Contains(have, named.Name()) {
		return nil
	}
	value := strings.Join(append(have, named.Name()), ",")
	if len(pulledLabel)+len(value) > maxLabel {
		return nil
	}
	_, err = ct.content.Update(ctx, content.Info{Digest: target.Digest, Labels: map[string]string{pulledLabel: value}}, "labels."+pulledLabel)
	return err
}

// sourced records on all stored blobs of an image that a repository has them. A
// push to another repository of the same registry can then mount the blobs
// there instead of sending them again.
func (ct *contents) sourced(ctx context.Context, target ocispec.Descriptor, named reference.Named) error {
	note, err := docker.AppendDistributionSourceLabel(ct.content, named.String())
	if err != nil {
		return err
	}
	var blobs []digest.Digest
	if err := ct.blobsOf(ctx, target, func(blob digest.Digest, _ int64) { blobs = append(blobs, blob) }); err != nil {
		return err
	}
	// Write all labels in one transaction, because each transaction is synced
	// to the disk.
	return ct.db.Update(func(tx *bbolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for _, blob := range blobs {
			if _, err := note(ctx, ocispec.Descriptor{Digest: blob}); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
}
