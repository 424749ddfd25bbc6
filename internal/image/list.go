package image

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/filter"
)

// ListOptions are the arguments of GET /images/json.
type ListOptions struct {
	All        bool // intermediate images too; there are none here
	Manifests  bool // tell the manifests of each image
	SharedSize bool // compute how much is shared with other images
	Filters    filter.Args
	// Containers counts an image's containers; nil leaves the count at -1.
	Containers func(imageID string) int64
}

// List lists images, the newest first. Filters: dangling, label, before, since,
// until, reference; an unknown one is an invalid argument.
func (s *Store) List(ctx context.Context, o ListOptions) ([]image.Summary, error) {
	ctx = s.ctx(ctx)
	keep, err := s.listFilter(ctx, o.Filters)
	if err != nil {
		return nil, err
	}
	all, err := s.entries(ctx)
	if err != nil {
		return nil, err
	}
	var shared map[digest.Digest]int
	if o.SharedSize {
		if shared, err = s.layerUsers(ctx, all); err != nil {
			return nil, err
		}
	}
	out := []image.Summary{}
	for _, e := range all {
		d, err := s.describe(ctx, e)
		if err != nil {
			return nil, err
		}
		if !keep(&d) {
			continue
		}
		sum, err := s.summary(ctx, d, o, shared)
		if err != nil {
			return nil, err
		}
		out = append(out, sum)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Created > out[j].Created })
	return out, nil
}

// described is an image with what its best variant says about it.
type described struct {
	entry
	variants      []variant
	best          *variant // nil when nothing of the image is here
	created       time.Time
	labels        map[string]string
	tags, digests []string
}

func (s *Store) describe(ctx context.Context, e entry) (described, error) {
	d := described{entry: e}
	var err error
	if d.variants, err = s.variants(ctx, e.target); err != nil {
		return d, fmt.Errorf("image %s: %w", e.id(), err)
	}
	v, err := s.choose(ctx, e.id(), d.variants, nil)
	if err == nil {
		d.best = &v
		d.labels = v.config.Config.Labels
		if v.config.Created != nil {
			d.created = *v.config.Created
		}
	} else if !errdefs.IsNotFound(err) {
		return d, err
	}
	d.tags, d.digests = e.tagsAndDigests()
	return d, nil
}

func (s *Store) summary(ctx context.Context, d described, o ListOptions, shared map[digest.Digest]int) (image.Summary, error) {
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
	stored, err := s.contentSize(ctx, d.target)
	if err != nil {
		return sum, err
	}
	sum.Size = stored
	if o.SharedSize {
		sum.SharedSize = 0
	}
	for _, v := range d.variants {
		sizes, err := s.layerSizes(ctx, v)
		if err != nil && !errdefs.IsNotFound(err) {
			return sum, err
		}
		chains := v.chainIDs()
		for i, n := range sizes {
			sum.Size += n
			if o.SharedSize && shared[chains[i]] > 1 {
				sum.SharedSize += n
			}
		}
	}
	if o.Manifests {
		if sum.Manifests, err = s.manifests(ctx, d); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// layerUsers counts the images that stand on each chain.
func (s *Store) layerUsers(ctx context.Context, all []entry) (map[digest.Digest]int, error) {
	users := map[digest.Digest]int{}
	for _, e := range all {
		variants, err := s.variants(ctx, e.target)
		if err != nil {
			return nil, err
		}
		mine := map[digest.Digest]bool{}
		for _, v := range variants {
			for _, chain := range v.chainIDs() {
				mine[chain] = true
			}
		}
		for chain := range mine {
			users[chain]++
		}
	}
	return users, nil
}

func (s *Store) manifests(ctx context.Context, d described) ([]image.ManifestSummary, error) {
	out := []image.ManifestSummary{}
	for _, v := range d.variants {
		ok, err := s.available(ctx, v)
		if err != nil {
			return nil, err
		}
		m := image.ManifestSummary{ID: v.desc.Digest.String(), Descriptor: v.desc, Available: ok, Kind: image.ManifestKindImage}
		if m.Size.Content, err = s.contentSize(ctx, v.desc); err != nil {
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
			n, err := s.unpackedSize(ctx, v)
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
func (s *Store) listFilter(ctx context.Context, args filter.Args) (func(*described) bool, error) {
	if err := args.Check("dangling", "label", "label!", "before", "since", "until", "reference"); err != nil {
		return nil, errInvalid("%s", err)
	}
	dangling, danglingGiven, err := args.Bool("dangling")
	if err != nil {
		return nil, errInvalid("%s", err)
	}
	var before, since, until time.Time
	for _, name := range args["before"] {
		t, err := s.createdAt(ctx, name)
		if err != nil {
			return nil, err
		}
		if before.IsZero() || t.Before(before) {
			before = t
		}
	}
	for _, name := range args["since"] {
		t, err := s.createdAt(ctx, name)
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
		if until.IsZero() || t.Before(until) {
			until = t
		}
	}
	for _, pattern := range args["reference"] {
		if _, err := reference.FamiliarMatch(pattern, anyRef); err != nil {
			return nil, errInvalid("invalid filter 'reference=%s': %s", pattern, err)
		}
	}
	return func(d *described) bool {
		switch {
		case danglingGiven && dangling != (len(d.names) == 0),
			!args.KV("label", d.labels),
			unwanted(args, d.labels),
			!before.IsZero() && !d.created.Before(before),
			!since.IsZero() && !d.created.After(since),
			!until.IsZero() && !d.created.Before(until):
			return false
		}
		return !args.Has("reference") || d.keepNames(args["reference"])
	}, nil
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

// keepNames leaves only the names that match one of the patterns, and reports
// whether any does.
func (d *described) keepNames(patterns []string) bool {
	matches := func(name string) bool {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return false
		}
		for _, p := range patterns {
			if ok, _ := reference.FamiliarMatch(p, ref); ok {
				return true
			}
		}
		return false
	}
	pick := func(names []string) []string {
		kept := []string{}
		for _, n := range names {
			if matches(n) {
				kept = append(kept, n)
			}
		}
		return kept
	}
	d.tags, d.digests = pick(d.tags), pick(d.digests)
	return len(d.tags)+len(d.digests) > 0
}

func (s *Store) createdAt(ctx context.Context, name string) (time.Time, error) {
	m, err := s.find(ctx, name)
	if err != nil {
		return time.Time{}, err
	}
	d, err := s.describe(ctx, m.entry)
	return d.created, err
}

// parseUntil reads a point in time: seconds since 1970, RFC 3339, a date, or
// how long before now.
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
	return time.Time{}, errInvalid("invalid filter 'until=%s': want a time such as 2006-01-02T15:04:05Z, seconds since 1970, or a duration such as 24h", value)
}

// Inspect tells all about an image, of the manifest for a platform where one is
// given.
func (s *Store) Inspect(ctx context.Context, name string, platform *ocispec.Platform) (image.InspectResponse, error) {
	ctx = s.ctx(ctx)
	m, err := s.find(ctx, name)
	if err != nil {
		return image.InspectResponse{}, err
	}
	return s.inspect(ctx, name, m, platform)
}
