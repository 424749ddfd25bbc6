package image

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// Pull fetches an image, unpacks it while it comes, and names it. platform nil
// is the host's. With all, every tag of the repository is pulled. Messages are
// Docker's, one call of progress at a time.
//
// Errors: invalid argument for a bad reference or a broken image, not found
// for what the registry lacks or denies, data loss when it sends something
// else than the digest says, unavailable when it can't be reached.
func (s *Store) Pull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, progress func(jsonstream.Message)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return errInvalid("invalid reference format: %q: %s", ref, err)
	}
	if !all {
		return s.pullOne(ctx, reference.TagNameOnly(named), platform, auth, newProgress(progress))
	}
	if !reference.IsNameOnly(named) {
		return errInvalid("tag can't be used with --all-tags/-a")
	}
	tags, err := s.remoteTags(s.ctx(ctx), named, auth)
	if err != nil {
		return errResolve(reference.FamiliarName(named), reference.FamiliarString(named), err)
	}
	if len(tags) == 0 {
		return errNotFound("repository %s has no tags", reference.FamiliarName(named))
	}
	for _, tag := range tags {
		tagged, err := reference.WithTag(named, tag)
		if err != nil {
			return errInvalid("the registry names the invalid tag %q: %s", tag, err)
		}
		if err := s.pullOne(ctx, tagged, platform, auth, newProgress(progress)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) pullOne(ctx context.Context, named reference.Named, platform *ocispec.Platform, auth *registry.AuthConfig, p *progress) error {
	name, short := reference.FamiliarName(named), reference.FamiliarString(named)
	what := ""
	if t, ok := named.(reference.Tagged); ok {
		what = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		what = d.Digest().String()
		// With both, the digest alone says what is meant, as in Docker.
		if pinned, err := reference.WithDigest(reference.TrimNamed(named), d.Digest()); err == nil {
			named = pinned
		}
	}
	conf := s.registry.Load()
	var target ocispec.Descriptor
	var changed bool
	err := s.withLease(ctx, func(ctx context.Context) error {
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
			store:    s,
			platform: platform,
			ref:      short,
			progress: p,
			fetcher:  &fetcher{store: s, remote: remote, attempts: conf.maxAttempts, progress: p},
		}
		if err := run.do(ctx, desc, conf.maxDownloads); err != nil {
			return errPull(name, short, err)
		}
		target = desc
		changed, err = s.record(ctx, named.String(), desc)
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
	s.onEvent("pull", short, name, nil)
	return nil
}

// maxLayers is OVL_MAX_STACK of Linux's overlayfs.
const maxLayers = 500

// pull is one run over one image.
type pull struct {
	store    *Store
	platform *ocispec.Platform
	ref      string // familiar
	progress *progress
	fetcher  *fetcher

	mu     sync.Mutex
	layers map[digest.Digest][]ocispec.Descriptor // by config
	told   map[digest.Digest]bool                 // layers whose end was told
}

func (r *pull) do(ctx context.Context, target ocispec.Descriptor, downloads int) error {
	if !images.IsIndexType(target.MediaType) && !images.IsManifestType(target.MediaType) {
		return errInvalid("%s is a %q, which is not an image", r.ref, target.MediaType)
	}
	r.layers = map[digest.Digest][]ocispec.Descriptor{}
	r.told = map[digest.Digest]bool{}
	unpacker, err := r.store.newUnpacker(ctx, r.store.driver, r.progress,
		unpack.WithLimiter(semaphore.NewWeighted(int64(downloads))),
		// A container may hold layers whose blobs went with their image.
		unpack.WithFetchAllContent())
	if err != nil {
		return err
	}
	err = images.Dispatch(ctx, unpacker.Unpack(images.HandlerFunc(r.handle)), nil, target)
	_, werr := unpacker.Wait()
	return unpackError(firstCause(err, werr))
}

// firstCause prefers the error that is not only the echo of the other.
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

// handle fetches one descriptor and tells what lies below it.
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

// index picks the manifest of the wanted platform.
func (r *pull) index(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	children, err := r.store.label(ctx, desc)
	if err != nil {
		return nil, errInvalid("index of %s: %s", r.ref, err)
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
		return nil, errNotFound("no matching manifest for %s in the manifest list entries", wanted)
	}
	return []ocispec.Descriptor{*best}, nil
}

func (r *pull) matcher() (platforms.MatchComparer, string) {
	if r.platform == nil {
		return platforms.Default(), platforms.Format(platforms.DefaultSpec())
	}
	return platforms.Only(*r.platform), platforms.Format(*r.platform)
}

func (r *pull) manifest(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	children, err := images.Children(ctx, r.store.content, desc)
	if err != nil {
		return nil, errInvalid("manifest of %s: %s", r.ref, err)
	}
	for _, child := range children {
		if err := checkDescriptor(child); err != nil {
			return nil, err
		}
	}
	conf, layers := children[0], children[1:]
	if !images.IsConfigType(conf.MediaType) {
		return nil, errInvalid("%s is no container image: its config is a %q", r.ref, conf.MediaType)
	}
	if len(layers) > maxLayers {
		return nil, errInvalid("%s has %d layers, more than the %d that overlayfs can stack", r.ref, len(layers), maxLayers)
	}
	for _, layer := range layers {
		if !images.IsLayerType(layer.MediaType) {
			return nil, errInvalid("%s has a layer of the unsupported media type %q", r.ref, layer.MediaType)
		}
	}
	r.mu.Lock()
	r.layers[conf.Digest] = layers
	r.mu.Unlock()
	return r.store.label(ctx, desc)
}

// config is fetched before any layer: it tells which are unpacked already.
func (r *pull) config(ctx context.Context, desc ocispec.Descriptor) error {
	doc, err := r.store.document(ctx, desc)
	if err != nil {
		return err
	}
	if r.platform != nil {
		if have := platforms.Normalize(doc.config.Platform); !platforms.Only(*r.platform).Match(have) {
			return errNotFound("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
				r.ref, platforms.Format(have), platforms.Format(*r.platform))
		}
	}
	r.mu.Lock()
	layers := r.layers[desc.Digest]
	r.mu.Unlock()
	diffs := doc.config.RootFS.DiffIDs
	if len(layers) != len(diffs) {
		return errInvalid("%s has %d layers, and its config speaks of %d", r.ref, len(layers), len(diffs))
	}
	for i, d := range diffs {
		if err := d.Validate(); err != nil {
			return errInvalid("the config of %s names layer %d by the invalid digest %q", r.ref, i, d)
		}
	}
	chains := identity.ChainIDs(append([]digest.Digest(nil), diffs...))
	for i, layer := range layers {
		unpacked, err := r.store.unpacked(ctx, r.store.driver, chains[i].String())
		if err != nil {
			return err
		}
		status := "Pulling fs layer"
		if unpacked {
			if _, err := r.store.content.Info(ctx, layer.Digest); err == nil {
				status = "Already exists"
				r.mu.Lock()
				r.told[layer.Digest] = true
				r.mu.Unlock()
			} else if !errdefs.IsNotFound(err) {
				return err
			}
		}
		r.progress.status(shortID(layer.Digest), status)
	}
	return nil
}

func (r *pull) layer(ctx context.Context, desc ocispec.Descriptor) error {
	if err := r.fetcher.fetch(ctx, desc); err != nil {
		return fmt.Errorf("layer %s: %w", shortID(desc.Digest), err)
	}
	r.mu.Lock()
	told := r.told[desc.Digest]
	r.told[desc.Digest] = true
	r.mu.Unlock()
	if !told {
		r.progress.status(shortID(desc.Digest), "Download complete")
	}
	return nil
}
