// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"path"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
	"holdfast/internal/filter"
)

// ListOptions are the arguments of GET /images/json.
type ListOptions struct {
	All        bool // also unnamed images from which others were committed
	Manifests  bool // include the manifests of each image
	SharedSize bool // compute how much is shared with other images, listed or not
	Filters    filter.Args
	// Containers counts an image's containers. Without it the count is -1.
	Containers func(imageID string) int64
	// Users returns the IDs of the containers made from a manifest. Without it
	// there are none.
	Users func(manifest digest.Digest) []string
}

// describer describes images to clients. It changes nothing.
type describer struct {
	env
	contents *contents
	layers   *layers
	catalog  *catalog
	// damaged has the IDs of the images that were logged as unreadable.
	damaged sync.Map
}

// DamagedLabel is a label that List adds to an image that can't be read. Its
// value is the reason. Such an image keeps its names, and Remove removes it.
const DamagedLabel = "holdfast.damaged"

// List lists images, the newest first. Filters: dangling, label, before, since,
// until, reference; an unknown one is an invalid argument. An image that can't
// be read has DamagedLabel, no creation time, and the size of those parts that
// are found.
func (ds *describer) List(ctx context.Context, o ListOptions) ([]image.Summary, error) {
	ctx = ds.ctx(ctx)
	matches, err := ds.listFilter(ctx, o.Filters)
	if err != nil {
		return nil, err
	}
	all, of, err := ds.catalog.parents(ctx)
	if err != nil {
		return nil, err
	}
	hidden := map[string]bool{}
	if !o.All {
		for _, parent := range of {
			hidden[parent] = true
		}
	}
	var shared *sharing
	if o.SharedSize {
		if shared, err = ds.sharing(ctx, all); err != nil {
			return nil, err
		}
	}
	out := []image.Summary{}
	for _, e := range all {
		if len(e.names) == 0 && hidden[e.id()] {
			continue
		}
		sum, listed, err := ds.listOne(ctx, e, o, matches, shared)
		if err != nil && !ds.catalog.gone(ctx, e) {
			return nil, err
		}
		if listed {
			sum.ParentID = of[e.id()]
			out = append(out, sum)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Created > out[j].Created })
	return out, nil
}

// listOne describes an image for List, unless the filters leave it out.
func (ds *describer) listOne(ctx context.Context, e entry, o ListOptions, matches func(*described) bool, shared *sharing) (sum image.Summary, listed bool, err error) {
	d, err := ds.describeAny(ctx, e)
	if err != nil || d.damaged != nil && ds.catalog.gone(ctx, e) || !matches(&d) {
		return sum, false, err
	}
	sum, err = ds.summary(ctx, d, o, shared)
	return sum, err == nil, err
}

// gone reports whether an image was removed since it was listed: none of its
// names refers to it any more. A record that can't be read does not count as
// removed.
func (ca *catalog) gone(ctx context.Context, e entry) bool {
	for _, name := range e.records {
		now, err := ca.images.Get(ctx, name)
		if err == nil && now.Target.Digest == e.target.Digest || err != nil && !errdefs.IsNotFound(err) {
			return false
		}
	}
	return true
}

// described is an image with the properties of its best variant.
type described struct {
	entry
	variants      []variant
	best          *variant // nil if no variant is in the store
	damaged       error    // why the image can't be read
	created       time.Time
	labels        map[string]string
	tags, digests []string
}

func (ds *describer) describe(ctx context.Context, e entry) (described, error) {
	d := described{entry: e}
	d.tags, d.digests = e.tagsAndDigests()
	var err error
	if d.variants, err = ds.contents.variants(ctx, e.target); err != nil {
		return d, fmt.Errorf("image %s: %w", e.id(), err)
	}
	v, err := ds.layers.choose(ctx, e.id(), d.variants, nil)
	if err == nil {
		d.best = &v
		d.labels = v.config.Config.Labels
		if v.config.Created != nil {
			d.created = *v.config.Created
		}
	} else if !errdefs.IsNotFound(err) {
		return d, err
	}
	return d, nil
}

// describeAny is describe for a list, which must not fail because of one image.
// An image that can't be read is described as damaged.
func (ds *describer) describeAny(ctx context.Context, e entry) (described, error) {
	d, err := ds.describe(ctx, e)
	if err == nil || ctx.Err() != nil {
		return d, err
	}
	if !ds.catalog.gone(ctx, e) {
		ds.logDamaged(e, err)
	}
	d.variants, d.best, d.damaged = nil, nil, err
	d.labels = map[string]string{DamagedLabel: err.Error()}
	return d, nil
}

// logDamaged logs once per image that it can't be read.
func (ds *describer) logDamaged(e entry, err error) {
	if _, logged := ds.damaged.LoadOrStore(e.id(), true); !logged {
		ds.log.Warn("an image is damaged: remove it and pull it again", "image", e.id(), "names", familiarNames(e.names), "error", err)
	}
}

func (ds *describer) summary(ctx context.Context, d described, o ListOptions, shared *sharing) (image.Summary, error) {
	sum := image.Summary{
		ID:          d.id(),
		Created:     d.created.Unix(),
		Labels:      d.labels,
		RepoTags:    d.tags,
		RepoDigests: d.digests,
		Containers:  -1,
		SharedSize:  -1,
		Descriptor:  &d.target,
	}
	if d.created.IsZero() {
		sum.Created = 0
	}
	if sum.Labels == nil {
		sum.Labels = map[string]string{}
	}
	if o.Containers != nil {
		sum.Containers = o.Containers(d.id())
	}
	if shared != nil {
		sum.SharedSize = 0
	}
	err := ds.contents.blobsOf(ctx, d.target, func(blob digest.Digest, n int64) {
		sum.Size += n
		if shared != nil && shared.blobs[blob] > 1 {
			sum.SharedSize += n
		}
	})
	if err != nil && d.damaged == nil {
		return sum, err
	}
	for _, v := range d.variants {
		sizes, err := ds.layers.layerSizes(ctx, v)
		if err != nil && !errdefs.IsNotFound(err) {
			return sum, err
		}
		chains := v.chainIDs()
		for i, n := range sizes {
			sum.Size += n
			if shared != nil && shared.chains[chains[i]] > 1 {
				sum.SharedSize += n
			}
		}
	}
	if o.Manifests {
		sum.Manifests = []image.ManifestSummary{}
	}
	if o.Manifests && d.damaged == nil {
		if sum.Manifests, err = ds.manifests(ctx, d, o.Users); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// sharing counts, for each blob, the images that have it, and for each chain of
// unpacked layers, the images that use it. Two maps are needed because the
// first chain ID equals the digest of an uncompressed layer.
type sharing struct{ blobs, chains map[digest.Digest]int }

func (ds *describer) sharing(ctx context.Context, all []entry) (*sharing, error) {
	users := &sharing{map[digest.Digest]int{}, map[digest.Digest]int{}}
	for _, e := range all {
		variants, err := ds.contents.variants(ctx, e.target)
		if ctx.Err() != nil {
			return nil, err
		}
		if err != nil {
			ds.logDamaged(e, err)
		}
		mine := map[digest.Digest]bool{}
		for _, v := range variants {
			for _, chain := range v.chainIDs() {
				mine[chain] = true
			}
		}
		for chain := range mine {
			users.chains[chain]++
		}
		err = ds.contents.blobsOf(ctx, e.target, func(blob digest.Digest, _ int64) { users.blobs[blob]++ })
		if ctx.Err() != nil {
			return nil, err
		}
	}
	return users, nil
}

func (ds *describer) manifests(ctx context.Context, d described, users func(digest.Digest) []string) ([]image.ManifestSummary, error) {
	out := []image.ManifestSummary{}
	for _, v := range d.variants {
		ok, err := ds.layers.available(ctx, v)
		if err != nil {
			return nil, err
		}
		m := image.ManifestSummary{ID: v.desc.Digest.String(), Descriptor: v.desc, Available: ok, Kind: image.ManifestKindImage}
		if m.Size.Content, err = ds.contents.contentSize(ctx, v.desc); err != nil {
			return nil, err
		}
		m.Size.Total = m.Size.Content
		switch {
		case v.attestation:
			m.Kind = image.ManifestKindAttestation
			m.Available = v.manifest != nil
			m.AttestationData = &image.AttestationProperties{For: digest.Digest(v.desc.Annotations["vnd.docker.reference.digest"])}
		default:
			m.ImageData = &image.ImageProperties{Platform: v.platform, Containers: []string{}}
			if users != nil {
				m.ImageData.Containers = append(m.ImageData.Containers, users(v.desc.Digest)...)
			}
			n, err := ds.layers.unpackedSize(ctx, v)
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, err
			}
			m.ImageData.Size.Unpacked = n
			m.Size.Total += n
		}
		out = append(out, m)
	}
	return out, nil
}

// listFilter compiles the filters of List.
func (ds *describer) listFilter(ctx context.Context, args filter.Args) (func(*described) bool, error) {
	if err := args.Check("dangling", "label", "label!", "before", "since", "until", "reference"); err != nil {
		return nil, errs.Invalid("%s", err)
	}
	dangling, danglingGiven, err := args.Bool("dangling")
	if err != nil {
		return nil, errs.Invalid("%s", err)
	}
	ages, err := ds.ageFilter(ctx, args)
	if err != nil {
		return nil, err
	}
	for _, pattern := range args["reference"] {
		if _, err := reference.FamiliarMatch(pattern, anyRef); err != nil {
			return nil, errs.Invalid("invalid filter 'reference=%s': %s", pattern, err)
		}
	}
	return func(d *described) bool {
		// The age and labels of a damaged image are unknown, so filters on them
		// never match it. Otherwise prune would delete it for its age.
		if d.damaged != nil && (args.Has("before") || args.Has("since") || args.Has("until") || args.Has("label!")) {
			return false
		}
		if danglingGiven && dangling != (len(d.names) == 0) || !args.KV("label", d.labels) || unwanted(args, d.labels) || !ages(d.created) {
			return false
		}
		return !args.Has("reference") || d.filterNames(args["reference"])
	}, nil
}

// ageFilter compiles the filters before, since and until.
func (ds *describer) ageFilter(ctx context.Context, args filter.Args) (func(created time.Time) bool, error) {
	var before, since, until time.Time
	for _, name := range args["before"] {
		t, err := ds.createdAt(ctx, name)
		if err != nil {
			return nil, err
		}
		before = earliest(before, t)
	}
	for _, name := range args["since"] {
		t, err := ds.createdAt(ctx, name)
		if err != nil {
			return nil, err
		}
		if t.After(since) {
			since = t
		}
	}
	for _, value := range args["until"] {
		t, err := parseUntil(value, time.Now())
		if err != nil {
			return nil, err
		}
		until = earliest(until, t)
	}
	return func(created time.Time) bool {
		return (before.IsZero() || created.Before(before)) && (since.IsZero() || created.After(since)) && (until.IsZero() || created.Before(until))
	}, nil
}

// earliest returns the earlier of two times. The zero time is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// unwanted reports whether one of the labels of a "label!" filter is there.
func unwanted(args filter.Args, labels map[string]string) bool {
	for _, l := range args["label!"] {
		if (filter.Args{"label": {l}}).KV("label", labels) {
			return true
		}
	}
	return false
}

var anyRef, _ = reference.ParseNormalizedNamed("x")

// filterNames removes the names that match none of the patterns, and reports
// whether any is left.
func (d *described) filterNames(patterns []string) bool {
	matches := func(name string) bool {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return false
		}
		for _, p := range patterns {
			if ok, _ := reference.FamiliarMatch(p, ref); ok {
				return true
			}
			for _, whole := range []string{ref.String(), ref.Name()} {
				if ok, _ := path.Match(p, whole); ok {
					return true
				}
			}
		}
		return false
	}
	pick := func(names []string) []string {
		left := []string{}
		for _, n := range names {
			if matches(n) {
				left = append(left, n)
			}
		}
		return left
	}
	d.tags, d.digests = pick(d.tags), pick(d.digests)
	return len(d.tags)+len(d.digests) > 0
}

func (ds *describer) createdAt(ctx context.Context, name string) (time.Time, error) {
	m, err := ds.catalog.find(ctx, name)
	if err != nil {
		return time.Time{}, err
	}
	d, err := ds.describe(ctx, m.entry)
	return d.created, err
}

// parseUntil reads a point in time: seconds since 1970, RFC 3339, a date, or a
// duration before now.
func parseUntil(value string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(value); err == nil {
		return now.Add(-d), nil
	}
	if secs, err := strconv.ParseFloat(value, 64); err == nil {
		whole := int64(secs)
		return time.Unix(whole, int64((secs-float64(whole))*1e9)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, value, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errs.Invalid("invalid filter 'until=%s': want a time such as 2006-01-02T15:04:05Z, seconds since 1970, or a duration such as 24h", value)
}

// Inspect describes an image, or its manifest for a platform if one is given.
// users returns the containers of a manifest, as in ListOptions.
func (ds *describer) Inspect(ctx context.Context, name string, platform *ocispec.Platform, users func(digest.Digest) []string) (Inspected, error) {
	ctx = ds.ctx(ctx)
	m, err := ds.catalog.find(ctx, name)
	if err != nil {
		return Inspected{}, err
	}
	return ds.inspect(ctx, name, m, platform, users)
}
