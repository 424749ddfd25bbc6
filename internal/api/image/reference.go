// SPDX-License-Identifier: Apache-2.0

package image

import (
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"holdfast/internal/api/wire"
)

// named joins a repository and a tag, which may be a digest, into a normalized
// reference. If tag is empty the repository's own tag or digest is kept.
func named(repo, tag string) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return nil, wire.Invalid("%w", err)
	}
	if tag == "" {
		return ref, nil
	}
	ref = reference.TrimNamed(ref)
	if d, derr := digest.Parse(tag); derr == nil {
		return reference.WithDigest(ref, d)
	}
	tagged, err := reference.WithTag(ref, tag)
	if err != nil {
		return nil, wire.Invalid("%w", err)
	}
	return tagged, nil
}
