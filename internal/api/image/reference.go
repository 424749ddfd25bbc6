package image

import (
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"holdfast/internal/api/wire"
)

// named joins a repository and a tag, which may be a digest, into a normalized
// reference. An empty tag keeps what the repository's name has.
func named(repo, tag string) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return nil, wire.Invalid("invalid reference format: %q: %w", repo, err)
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
		return nil, wire.Invalid("invalid tag %q: %w", tag, err)
	}
	return tagged, nil
}
