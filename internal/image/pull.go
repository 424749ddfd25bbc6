// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"holdfast/internal/errs"
)

// Pull downloads an image, unpacks it meanwhile, and names it. platform nil
// means the host's. With all, every tag of the repository is pulled. Messages
// are Docker's, one call of progress at a time.
//
// Errors: invalid argument for a bad reference or a broken image, not found for
// what the registry lacks or denies, data loss if its content does not match
// the digest, unavailable if it can't be reached.
func (s *Store) Pull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return errs.Invalid("%s", err)
	}
	if !all {
		return s.pullOne(ctx, reference.TagNameOnly(named), platform, auth, newProgress(progress))
	}
	if !reference.IsNameOnly(named) {
		return errs.Invalid("tag can't be used with --all-tags/-a")
	}
	tags, err := s.remote.remoteTags(s.ctx(ctx), named, auth)
	if err != nil {
		return errResolve(reference.FamiliarName(named), reference.FamiliarString(named), err)
	}
	if len(tags) == 0 {
		return errs.NotFound("repository %s has no tags", reference.FamiliarName(named))
	}
	for _, tag := range tags {
		tagged, err := reference.WithTag(named, tag)
		if err != nil {
			return errs.Invalid("the registry names the invalid tag %q: %s", tag, err)
		}
		if err := s.pullOne(ctx, tagged, platform, auth, newProgress(progress)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) pullOne(ctx context.Context, named reference.Named, platform *ocispec.Platform, auth *registry.AuthConfig, p *progress) error {
	name, short := reference.FamiliarName(named), reference.FamiliarString(named)
	what := named.String()
	if t, ok := named.(reference.Tagged); ok {
		what = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		// If both tag and digest are given, only the digest counts, as in
		// Docker.
		if pinned, err := reference.WithDigest(reference.TrimNamed(named), d.Digest()); err == nil {
			named = pinned
		}
	}
	conf := s.remote.registry.Load()
	var target ocispec.Descriptor
	var changed bool
	err := s.leasing.withLease(ctx, func(ctx context.Context) error {
		resolver := conf.resolver(auth)
		full, desc, err := resolver.Resolve(ctx, named.String())
		if err != nil {
			return errResolve(name, short, err)
		}
		p.send(jsonstream.Message{ID: what, Status: "Pulling from " + reference.Path(named)})
		remote, err := resolver.Fetcher(ctx, full)
		if err != nil {
			return errResolve(name, short, err)
		}
		run := &pull{
			contents: s.contents,
			layers:   s.layers,
			platform: platform,
			ref:      short,
			progress: p,
			fetcher:  &fetcher{contents: s.contents, leasing: s.leasing, remote: remote, attempts: conf.maxAttempts, progress: p},
		}
		if err := run.do(ctx, desc, conf.maxDownloads); err != nil {
			return errPull(name, short, err)
		}
		run.fetchAttestations(ctx)
		// The image may have documents that were not downloaded because they
		// are in the store already. Lists read all of them, so check them all.
		if _, err := s.contents.variants(ctx, desc); err != nil {
			return errs.Invalid("%s can't be used: %s", short, err)
		}
		if err := s.contents.pulledFrom(ctx, desc, named); err != nil {
			return err
		}
		target = desc
		changed, err = s.catalog.record(ctx, named.String(), desc)
		return err
	})
	if err != nil {
		return err
	}
	p.line("Digest: " + target.Digest.String())
	if changed {
		p.line("Status: Downloaded newer image for " + short)
	} else {
		p.line("Status: Image is up to date for " + short)
	}
	s.catalog.emitEvent(ctx, "pull", short, name, target)
	return nil
}

// pull is one pull of one image.
type pull struct {
	contents *contents
	layers   *layers
	platform *ocispec.Platform
	ref      string // familiar
	progress *progress
	fetcher  *fetcher

	mu       sync.Mutex
	indexes  int                                    // indexes passed so far
	byConfig map[digest.Digest][]ocispec.Descriptor // the layers of each configuration
	reported map[digest.Digest]bool                 // layers whose completion was reported
	attests  []ocispec.Descriptor                   // the manifests that attest to the chosen one
}

func (r *pull) do(ctx context.Context, target ocispec.Descriptor, downloads int) error {
	if !images.IsIndexType(target.MediaType) && !images.IsManifestType(target.MediaType) {
		return errs.Invalid("%s is a %q, which is not an image", r.ref, target.MediaType)
	}
	r.byConfig = map[digest.Digest][]ocispec.Descriptor{}
	r.reported = map[digest.Digest]bool{}
	unpacker, err := r.layers.newUnpacker(ctx, r.layers.driver, r.progress,
		unpack.WithLimiter(semaphore.NewWeighted(int64(downloads))),
		// A container may hold unpacked layers whose blobs were removed with
		// their image.
		unpack.WithFetchAllContent())
	if err != nil {
		return err
	}
	err = images.Dispatch(ctx, unpacker.Unpack(images.HandlerFunc(r.handle)), nil, target)
	_, werr := unpacker.Wait()
	return unpackError(firstCause(err, werr))
}

// firstCause prefers an error that is not just a cancellation caused by
// another.
func firstCause(errs ...error) error {
	var echo error
	for _, err := range errs {
		switch {
		case err == nil:
		case errors.Is(err, context.Canceled):
			echo = err
		default:
			return err
		}
	}
	return echo
}

// handle fetches one descriptor and returns its children.
func (r *pull) handle(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if images.IsLayerType(desc.MediaType) {
		return nil, r.layer(ctx, desc)
	}
	if err := r.fetcher.fetch(ctx, desc); err != nil {
		return nil, err
	}
	switch {
	case images.IsIndexType(desc.MediaType):
		return r.index(ctx, desc)
	case images.IsManifestType(desc.MediaType):
		return r.manifest(ctx, desc)
	case images.IsConfigType(desc.MediaType):
		return nil, r.config(ctx, desc)
	}
	return nil, nil
}

// index picks the manifest for the wanted platform.
func (r *pull) index(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if err := r.countIndex(); err != nil {
		return nil, err
	}
	if _, err := r.contents.document(ctx, desc); err != nil {
		return nil, errs.Invalid("index of %s: %s", r.ref, err)
	}
	children, err := r.contents.label(ctx, desc)
	if err != nil {
		return nil, errs.Invalid("index of %s: %s", r.ref, err)
	}
	match, wanted := r.matcher()
	var best, unnamed *ocispec.Descriptor
	for i := range children {
		child := &children[i]
		if child.Annotations["vnd.docker.reference.type"] == attestationType {
			continue
		}
		switch {
		case child.Platform == nil:
			if unnamed == nil {
				unnamed = child
			}
		case match.Match(*child.Platform) && (best == nil || match.Less(*child.Platform, *best.Platform)):
			best = child
		}
	}
	if best == nil {
		best = unnamed
	}
	if best == nil {
		return nil, errs.NotFound("no matching manifest for %s in the manifest list entries", wanted)
	}
	r.attests = attesting(children, best.Digest)
	return []ocispec.Descriptor{*best}, nil
}

// countIndex counts the indexes on the path from the target to its manifest.
func (r *pull) countIndex() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The manifest is one level below the last index.
	if r.indexes++; r.indexes > maxDepth {
		return errs.Invalid("%s can't be used: its index nests more than %d levels", r.ref, maxDepth)
	}
	return nil
}

func (r *pull) matcher() (platforms.MatchComparer, string) {
	if r.platform == nil {
		return platforms.Default(), platforms.Format(platforms.DefaultSpec())
	}
	return platforms.Only(*r.platform), platforms.Format(*r.platform)
}

func (r *pull) manifest(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	doc, err := r.contents.document(ctx, desc)
	if err != nil {
		return nil, errs.Invalid("manifest of %s: %s", r.ref, err)
	}
	children := append([]ocispec.Descriptor{doc.manifest.Config}, doc.manifest.Layers...)
	for _, child := range children {
		if err := checkDescriptor(child); err != nil {
			return nil, err
		}
	}
	conf, layers := children[0], children[1:]
	if !images.IsConfigType(conf.MediaType) {
		return nil, errs.Invalid("%s is not a container image: its config is a %q", r.ref, conf.MediaType)
	}
	for _, layer := range layers {
		if !images.IsLayerType(layer.MediaType) {
			return nil, errs.Invalid("%s has a layer of the unsupported media type %q", r.ref, layer.MediaType)
		}
	}
	r.mu.Lock()
	r.byConfig[conf.Digest] = layers
	r.mu.Unlock()
	return r.contents.label(ctx, desc)
}

// config is fetched before any layer, because it shows which layers are
// unpacked already.
func (r *pull) config(ctx context.Context, desc ocispec.Descriptor) error {
	doc, err := r.contents.document(ctx, desc)
	if err != nil {
		return err
	}
	if r.platform != nil {
		if have := platforms.Normalize(doc.config.Platform); !platforms.Only(*r.platform).Match(have) {
			return errs.NotFound("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
				r.ref, platforms.Format(have), platforms.Format(*r.platform))
		}
	}
	r.mu.Lock()
	layers := r.byConfig[desc.Digest]
	r.mu.Unlock()
	if err := checkRootfs(doc.config, layers); err != nil {
		return errs.Invalid("%s can't be used: %s", r.ref, err)
	}
	chains := identity.ChainIDs(append([]digest.Digest(nil), doc.config.RootFS.DiffIDs...))
	for i, layer := range layers {
		unpacked, err := r.layers.unpacked(ctx, r.layers.driver, chains[i].String())
		if err != nil {
			return err
		}
		here, err := content.Exists(ctx, r.contents.content, layer)
		if err != nil {
			return err
		}
		if here {
			r.mu.Lock()
			r.reported[layer.Digest] = true
			r.mu.Unlock()
		}
		switch {
		case here && unpacked: // Docker reports nothing for a layer that needs no work
		case here:
			r.progress.status(shortID(layer.Digest), "Already exists")
		default:
			r.progress.status(shortID(layer.Digest), "Pulling fs layer")
		}
	}
	return nil
}

func (r *pull) layer(ctx context.Context, desc ocispec.Descriptor) error {
	if err := r.fetcher.fetch(ctx, desc); err != nil {
		return fmt.Errorf("layer %s: %w", shortID(desc.Digest), err)
	}
	r.mu.Lock()
	reported := r.reported[desc.Digest]
	r.reported[desc.Digest] = true
	r.mu.Unlock()
	if !reported {
		r.progress.status(shortID(desc.Digest), "Download complete")
	}
	return nil
}
