// SPDX-License-Identifier: Apache-2.0

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

	"holdfast/internal/errs"
)

// Bounds of an image. Images come from strangers and their documents are read
// into memory whole, so each bound is finite, but far above any real image.
const (
	// maxDocument bounds, in bytes, an index, manifest or config. Docker's
	// registry takes manifests of up to 4 MiB.
	maxDocument = 8 << 20
	// maxValues bounds the values in a document: a value that takes two bytes
	// of JSON can take hundreds of bytes of memory.
	maxValues = 100_000
	// maxNesting bounds how deep the values of a document nest.
	maxNesting = 64
	// maxDepth bounds the indexes between an image's target and a manifest.
	maxDepth = 4
	// maxManifests bounds the manifests and indexes of one image, each counted
	// once. maxWays bounds how often they are named.
	maxManifests = 1000
	maxWays      = 4000
	// maxAllLayers bounds the layers of all manifests of one image.
	maxAllLayers = 20_000
	// maxLayers is OVL_MAX_STACK of Linux's overlayfs.
	maxLayers = 500
)

// attestationType marks a manifest that attests to another one (BuildKit,
// docs/attestations/attestation-storage.md).
const attestationType = "attestation-manifest"

// document is a parsed blob. Exactly one of index, manifest and config is set,
// or broken.
type document struct {
	mediaType string // media type that it was parsed as
	broken    error  // why it can't be parsed
	index     *ocispec.Index
	manifest  *ocispec.Manifest
	config    *dockerspec.DockerOCIImage
}

// documents caches parsed blobs. They never change, as they are named by their
// digests. The cache is cleared when a collection may have removed some.
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

func (d *documents) drop(key digest.Digest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.known, key)
}

func (d *documents) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = nil
}

// document reads and parses a blob of the kind that the descriptor names.
func (ct *contents) document(ctx context.Context, desc ocispec.Descriptor) (document, error) {
	if doc, ok := ct.docs.get(desc.Digest); ok && doc.is(desc.MediaType) {
		return doc, doc.broken
	}
	info, err := ct.content.Info(ctx, desc.Digest)
	if err != nil {
		return document{}, err
	}
	if info.Size > maxDocument {
		return ct.brokenDocument(desc, errs.Invalid("%s %s has %d bytes, more than the %d allowed", desc.MediaType, desc.Digest, info.Size, maxDocument))
	}
	desc.Data = nil
	raw, err := content.ReadBlob(ctx, ct.content, desc)
	if err != nil {
		return document{}, err
	}
	if got := digest.FromBytes(raw); desc.Digest.Algorithm() == digest.Canonical && got != desc.Digest {
		return ct.brokenDocument(desc, errdefs.ErrDataLoss.WithMessage(fmt.Sprintf("%s %s was changed on the disk: its content has the digest %s", desc.MediaType, desc.Digest, got)))
	}
	doc, err := parseDocument(desc, raw)
	if err != nil {
		return ct.brokenDocument(desc, err)
	}
	ct.docs.put(desc.Digest, doc)
	return doc, nil
}

// brokenDocument remembers that a document can't be read, so that lists don't
// read it again and again.
func (ct *contents) brokenDocument(desc ocispec.Descriptor, err error) (document, error) {
	ct.docs.put(desc.Digest, document{mediaType: desc.MediaType, broken: err})
	return document{}, err
}

// is reports whether a document was parsed as a media type. One blob may be
// named as a config in one place and as a manifest in another.
func (d document) is(mediaType string) bool { return d.mediaType == mediaType }

// parseDocument parses a blob as the media type of its descriptor. Errors:
// invalid argument if it could also be read as another type, or exceeds a
// bound.
func parseDocument(desc ocispec.Descriptor, raw []byte) (document, error) {
	if err := checkJSON(raw); err != nil {
		return document{}, errs.Invalid("%s %s: %s", desc.MediaType, desc.Digest, err)
	}
	doc := document{mediaType: desc.MediaType}
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
		return document{}, errs.Invalid("%s is a %q, which is neither an image nor a list of images", desc.Digest, desc.MediaType)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return document{}, errs.Invalid("%s %s can't be read: %s", desc.MediaType, desc.Digest, err)
	}
	if err := doc.check(desc, raw); err != nil {
		return document{}, err
	}
	return doc, nil
}

// check refuses documents that two readers could understand differently, and
// those that exceed the bounds of an image.
func (d document) check(desc ocispec.Descriptor, raw []byte) error {
	if d.config != nil {
		return nil
	}
	// encoding/json matches keys in any case and takes the last of two equal
	// keys. So do the readers that such a document would confuse.
	var has struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(raw, &has); err != nil {
		return errs.Invalid("%s %s can't be read: %s", desc.MediaType, desc.Digest, err)
	}
	given := func(v json.RawMessage) bool { return len(v) > 0 && string(v) != "null" }
	index := given(has.Manifests) || images.IsIndexType(has.MediaType)
	manifest := given(has.Config) || given(has.Layers) || images.IsManifestType(has.MediaType)
	switch {
	case given(has.FSLayers):
		return errs.Invalid("%s is a manifest of schema 1, which is not supported: push the image again", desc.Digest)
	case d.manifest != nil && index:
		return errs.Invalid("%s is named as a manifest and is an index", desc.Digest)
	case d.index != nil && manifest:
		return errs.Invalid("%s is named as an index and is a manifest", desc.Digest)
	case d.index != nil && len(d.index.Manifests) > maxManifests:
		return errs.Invalid("index %s has %d manifests, more than the %d allowed", desc.Digest, len(d.index.Manifests), maxManifests)
	case d.manifest != nil && len(d.manifest.Layers) > maxLayers:
		return errs.Invalid("manifest %s has %d layers, more than the %d that overlayfs can stack", desc.Digest, len(d.manifest.Layers), maxLayers)
	}
	return nil
}

// checkJSON bounds the number of values in a text and their nesting, before any
// value is allocated. Whether the text is valid JSON is left to the decoder.
func checkJSON(raw []byte) error {
	values, depth, quoted := 1, 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{', c == '[':
			values++
			if depth++; depth > maxNesting {
				return fmt.Errorf("its values nest more than %d levels deep", maxNesting)
			}
		case c == '}', c == ']':
			depth--
		case c == ',':
			if values++; values > maxValues {
				return fmt.Errorf("it has more than %d values", maxValues)
			}
		}
	}
	return nil
}

// variant is one manifest of an image.
type variant struct {
	desc        ocispec.Descriptor
	platform    ocispec.Platform
	attestation bool
	manifest    *ocispec.Manifest          // nil if it isn't in the store
	config      *dockerspec.DockerOCIImage // nil if it isn't in the store
}

// snapshot is the key of the variant's top layer; empty without layers.
func (v variant) snapshot() string {
	if v.config == nil || len(v.config.RootFS.DiffIDs) == 0 {
		return ""
	}
	return identity.ChainID(v.config.RootFS.DiffIDs).String()
}

// variants lists the manifests of a target in the order of its index, each
// once. Errors: see walk.
func (ct *contents) variants(ctx context.Context, target ocispec.Descriptor) ([]variant, error) {
	var all []variant
	err := ct.walk(ctx, target, func(desc ocispec.Descriptor, doc *document) error {
		switch {
		case doc == nil && images.IsIndexType(desc.MediaType):
			return nil
		case doc == nil:
			all = append(all, missing(desc))
			return nil
		case doc.index != nil:
			return nil
		}
		v, err := ct.variant(ctx, desc, doc.manifest)
		all = append(all, v)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// walk visits the indexes and manifests of a target, each once, parents first.
// doc is nil for those that are not in the store. Errors: invalid argument for
// documents that exceed the bounds, data loss for documents that were changed
// on the disk.
func (ct *contents) walk(ctx context.Context, target ocispec.Descriptor, fn func(desc ocispec.Descriptor, doc *document) error) error {
	w := walker{contents: ct, fn: fn, ways: map[string]int{}}
	_, err := w.visit(ctx, target, 0)
	return err
}

type walker struct {
	contents *contents
	fn       func(ocispec.Descriptor, *document) error
	// ways counts the paths down from each visited document, by its digest, and
	// by its platform if the descriptor names one. The libraries follow every
	// path, so a small image whose indexes name each other many times would be
	// as slow as a large one.
	ways   map[string]int
	layers int
}

// visit returns the number of paths that lead down from desc.
func (w *walker) visit(ctx context.Context, desc ocispec.Descriptor, depth int) (int, error) {
	key := desc.Digest.String()
	if desc.Platform != nil {
		key += " " + platforms.FormatAll(*desc.Platform)
	}
	if ways, ok := w.ways[key]; ok {
		return ways, nil
	}
	w.ways[key] = 1
	switch {
	case depth > maxDepth:
		return 0, errs.Invalid("index %s nests more than %d levels", desc.Digest, maxDepth)
	case len(w.ways) > maxManifests:
		return 0, errs.Invalid("the image has more than %d manifests", maxManifests)
	}
	if err := desc.Digest.Validate(); err != nil {
		return 0, errs.Invalid("the image names a manifest by the invalid digest %q: %s", desc.Digest, err)
	}
	doc, err := w.contents.document(ctx, desc)
	if errdefs.IsNotFound(err) {
		return 1, w.fn(desc, nil)
	}
	if err != nil {
		return 0, err
	}
	if doc.index == nil && doc.manifest == nil {
		return 0, errs.Invalid("%s is not a manifest", desc.Digest)
	}
	if doc.manifest != nil {
		if w.layers += len(doc.manifest.Layers); w.layers > maxAllLayers {
			return 0, errs.Invalid("the manifests of the image have more than %d layers", maxAllLayers)
		}
	}
	if err := w.fn(desc, &doc); err != nil || doc.index == nil {
		return 1, err
	}
	sum := 1
	for _, child := range doc.index.Manifests {
		if !images.IsIndexType(child.MediaType) && !images.IsManifestType(child.MediaType) {
			continue
		}
		ways, err := w.visit(ctx, child, depth+1)
		if err != nil {
			return 0, err
		}
		if sum += ways; sum > maxWays {
			return 0, errs.Invalid("index %s names manifests more than %d times", desc.Digest, maxWays)
		}
	}
	w.ways[key] = sum
	return sum, nil
}

// variant is a manifest with its config.
func (ct *contents) variant(ctx context.Context, desc ocispec.Descriptor, manifest *ocispec.Manifest) (variant, error) {
	v := missing(desc)
	v.manifest = manifest
	if !images.IsConfigType(manifest.Config.MediaType) {
		return v, nil
	}
	conf, err := ct.document(ctx, manifest.Config)
	if errdefs.IsNotFound(err) {
		return v, nil
	}
	if err != nil {
		return v, fmt.Errorf("image %s: %w", desc.Digest, err)
	}
	// A manifest that attests to another one has no root filesystem to check.
	if !v.attestation {
		if err := checkRootfs(conf.config, manifest.Layers); err != nil {
			return v, fmt.Errorf("image %s: %w", desc.Digest, err)
		}
	}
	v.config = conf.config
	if desc.Platform == nil {
		v.platform = platforms.Normalize(conf.config.Platform)
	}
	return v, nil
}

// checkRootfs refuses a config that does not match the manifest's layers.
// Snapshots are looked up by the layers that the config lists.
func checkRootfs(conf *dockerspec.DockerOCIImage, layers []ocispec.Descriptor) error {
	diffs := conf.RootFS.DiffIDs
	if len(layers) != len(diffs) {
		return errs.Invalid("it has %d layers, but its config lists %d", len(layers), len(diffs))
	}
	for i, d := range diffs {
		if err := d.Validate(); err != nil {
			return errs.Invalid("its config names layer %d by the invalid digest %q", i, d)
		}
	}
	return nil
}

func missing(desc ocispec.Descriptor) variant {
	v := variant{desc: desc, attestation: desc.Annotations["vnd.docker.reference.type"] == attestationType}
	if desc.Platform != nil {
		v.platform = platforms.Normalize(*desc.Platform)
	}
	return v
}

// available reports whether a container can be made from the variant without a
// pull: it is unpacked, or all of its layers are in the store.
func (ly *layers) available(ctx context.Context, v variant) (bool, error) {
	if v.manifest == nil || v.config == nil || v.attestation {
		return false, nil
	}
	unpacked, err := ly.unpacked(ctx, ly.driver, v.snapshot())
	if unpacked || err != nil {
		return unpacked, err
	}
	for _, layer := range v.manifest.Layers {
		if _, err := ly.contents.content.Info(ctx, layer.Digest); errdefs.IsNotFound(err) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return true, nil
}

func (ly *layers) unpacked(ctx context.Context, storage, snapshot string) (bool, error) {
	if snapshot == "" {
		return true, nil
	}
	if ly.lowers.has(storage, snapshot) {
		return true, nil
	}
	sn, err := ly.snapshotter(storage)
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

// choose picks the variant for a platform. nil means the host's platform, or
// any variant in the store if there is none for the host.
func (ly *layers) choose(ctx context.Context, name string, all []variant, platform *ocispec.Platform) (variant, error) {
	match := platforms.Default()
	if platform != nil {
		match = platforms.Only(*platform)
	}
	var best, other *variant
	for i := range all {
		v := &all[i]
		ok, err := ly.available(ctx, *v)
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
		return variant{}, errs.NotFound("image %s has no layers here; pull it again", name)
	}
	return variant{}, errs.NotFound("image with reference %s was found but does not provide the specified platform (%s)", name, platforms.Format(*platform))
}
