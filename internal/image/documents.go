package image

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument bounds, in bytes, an index, manifest or config: they are read
// into memory. Docker's registry takes manifests of up to 4 MiB.
const maxDocument = 8 << 20

// attestationType marks a manifest that speaks about another one (BuildKit,
// docs/attestations/attestation-storage.md).
const attestationType = "attestation-manifest"

// document is a parsed blob: one of its fields is set.
type document struct {
	index    *ocispec.Index
	manifest *ocispec.Manifest
	config   *dockerspec.DockerOCIImage
}

// documents remembers parsed blobs; their digests say that they never change.
// It is emptied when a collection may have removed some.
type documents struct {
	mu    sync.Mutex
	known map[digest.Digest]document
}

func (d *documents) get(key digest.Digest) (document, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	doc, ok := d.known[key]
	return doc, ok
}

func (d *documents) put(key digest.Digest, doc document) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = map[digest.Digest]document{}
	}
	d.known[key] = doc
}

func (d *documents) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = nil
}

// document reads and parses a blob of the kind that the descriptor names.
func (s *Store) document(ctx context.Context, desc ocispec.Descriptor) (document, error) {
	if doc, ok := s.docs.get(desc.Digest); ok {
		return doc, nil
	}
	info, err := s.content.Info(ctx, desc.Digest)
	if err != nil {
		return document{}, err
	}
	if info.Size > maxDocument {
		return document{}, errInvalid("%s %s has %d bytes, more than the %d allowed", desc.MediaType, desc.Digest, info.Size, maxDocument)
	}
	desc.Data = nil
	raw, err := content.ReadBlob(ctx, s.content, desc)
	if err != nil {
		return document{}, err
	}
	var doc document
	var into any
	switch {
	case images.IsIndexType(desc.MediaType):
		doc.index = new(ocispec.Index)
		into = doc.index
	case images.IsManifestType(desc.MediaType):
		doc.manifest = new(ocispec.Manifest)
		into = doc.manifest
	case images.IsConfigType(desc.MediaType):
		doc.config = new(dockerspec.DockerOCIImage)
		into = doc.config
	default:
		return document{}, errInvalid("%s is a %q, which is neither an image nor a list of images", desc.Digest, desc.MediaType)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return document{}, errInvalid("%s %s can't be read: %s", desc.MediaType, desc.Digest, err)
	}
	s.docs.put(desc.Digest, doc)
	return doc, nil
}

// variant is one manifest of an image.
type variant struct {
	desc        ocispec.Descriptor
	platform    ocispec.Platform
	attestation bool
	manifest    *ocispec.Manifest          // nil when it isn't here
	config      *dockerspec.DockerOCIImage // nil when it isn't here
}

// snapshot is the key of the variant's top layer; empty without layers.
func (v variant) snapshot() string {
	if v.config == nil || len(v.config.RootFS.DiffIDs) == 0 {
		return ""
	}
	return identity.ChainID(v.config.RootFS.DiffIDs).String()
}

// variants lists the manifests of a target in the order of its index.
func (s *Store) variants(ctx context.Context, target ocispec.Descriptor) ([]variant, error) {
	return s.variantsAt(ctx, target, 0)
}

func (s *Store) variantsAt(ctx context.Context, target ocispec.Descriptor, depth int) ([]variant, error) {
	const maxDepth = 4
	if depth > maxDepth {
		return nil, errInvalid("index %s nests more than %d levels", target.Digest, maxDepth)
	}
	doc, err := s.document(ctx, target)
	if errdefs.IsNotFound(err) {
		if images.IsIndexType(target.MediaType) {
			return nil, nil
		}
		return []variant{missing(target)}, nil
	}
	if err != nil {
		return nil, err
	}
	if doc.index != nil {
		var all []variant
		for _, child := range doc.index.Manifests {
			if !images.IsIndexType(child.MediaType) && !images.IsManifestType(child.MediaType) {
				continue
			}
			below, err := s.variantsAt(ctx, child, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, below...)
		}
		return all, nil
	}
	if doc.manifest == nil {
		return nil, errInvalid("%s is no manifest", target.Digest)
	}
	v := missing(target)
	v.manifest = doc.manifest
	if !images.IsConfigType(doc.manifest.Config.MediaType) {
		return []variant{v}, nil
	}
	conf, err := s.document(ctx, doc.manifest.Config)
	if errdefs.IsNotFound(err) {
		return []variant{v}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", target.Digest, err)
	}
	v.config = conf.config
	if target.Platform == nil {
		v.platform = platforms.Normalize(conf.config.Platform)
	}
	return []variant{v}, nil
}

func missing(desc ocispec.Descriptor) variant {
	v := variant{desc: desc, attestation: desc.Annotations["vnd.docker.reference.type"] == attestationType}
	if desc.Platform != nil {
		v.platform = platforms.Normalize(*desc.Platform)
	}
	return v
}

// available reports whether a container can be made of the variant here and
// now: it is unpacked, or all of its layers are here.
func (s *Store) available(ctx context.Context, v variant) (bool, error) {
	if v.manifest == nil || v.config == nil || v.attestation {
		return false, nil
	}
	unpacked, err := s.unpacked(ctx, s.driver, v.snapshot())
	if unpacked || err != nil {
		return unpacked, err
	}
	for _, layer := range v.manifest.Layers {
		if _, err := s.content.Info(ctx, layer.Digest); errdefs.IsNotFound(err) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return true, nil
}

func (s *Store) unpacked(ctx context.Context, storage, snapshot string) (bool, error) {
	if snapshot == "" {
		return true, nil
	}
	if s.lowers.has(storage, snapshot) {
		return true, nil
	}
	sn, err := s.snapshotter(storage)
	if err != nil {
		return false, err
	}
	if _, err := sn.Stat(ctx, snapshot); errdefs.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, nil
}

// choose picks the variant for a platform; nil is the host's, and, when there
// is none for the host, whatever is here.
func (s *Store) choose(ctx context.Context, name string, all []variant, platform *ocispec.Platform) (variant, error) {
	match := platforms.Default()
	if platform != nil {
		match = platforms.Only(*platform)
	}
	var best, other *variant
	for i := range all {
		v := &all[i]
		ok, err := s.available(ctx, *v)
		if err != nil {
			return variant{}, err
		}
		switch {
		case !ok:
		case !match.Match(v.platform):
			if other == nil {
				other = v
			}
		case best == nil || match.Less(v.platform, best.platform):
			best = v
		}
	}
	switch {
	case best != nil:
		return *best, nil
	case platform == nil && other != nil:
		return *other, nil
	case platform == nil:
		return variant{}, errNotFound("image %s has no layers here; pull it again", name)
	}
	return variant{}, errNotFound("image with reference %s was found but does not provide the specified platform (%s)", name, platforms.Format(*platform))
}
