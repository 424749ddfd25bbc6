package image

import (
	"context"
	"regexp"
	"sort"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// danglingPrefix names the record of an image that has no name of its own. No
// reference can begin so.
const danglingPrefix = "<none>@"

var (
	fullHex  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	shortHex = regexp.MustCompile(`^[0-9a-f]{4,64}$`)
)

func isDigest(s string) bool { return digest.Digest(s).Validate() == nil }

// entry is one image: a target and all that it is called.
type entry struct {
	target  ocispec.Descriptor
	names   []string // full references, sorted; without the dangling record
	records []string // names of all records
	updated time.Time
}

func (e entry) id() string { return e.target.Digest.String() }

// entries groups the records by target, newest record first.
func (s *Store) entries(ctx context.Context) ([]entry, error) {
	records, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	byID := map[digest.Digest]*entry{}
	for _, r := range records {
		e := byID[r.Target.Digest]
		if e == nil {
			e = &entry{target: r.Target}
			byID[r.Target.Digest] = e
		}
		e.records = append(e.records, r.Name)
		if !strings.HasPrefix(r.Name, danglingPrefix) {
			e.names = append(e.names, r.Name)
		}
		if r.UpdatedAt.After(e.updated) {
			e.updated = r.UpdatedAt
		}
	}
	all := make([]entry, 0, len(byID))
	for _, e := range byID {
		sort.Strings(e.names)
		all = append(all, *e)
	}
	sort.Slice(all, func(i, j int) bool {
		if !all[i].updated.Equal(all[j].updated) {
			return all[i].updated.After(all[j].updated)
		}
		return all[i].id() < all[j].id()
	})
	return all, nil
}

// match is what a name that the user gave was found to mean.
type match struct {
	entry
	// ref is the record that was named, empty when the image was named by ID.
	ref string
}

// find looks a name up: a reference, full or familiar, with tag or digest, or
// an ID, whole or its beginning, with or without "sha256:".
func (s *Store) find(ctx context.Context, name string) (match, error) {
	all, err := s.entries(ctx)
	if err != nil {
		return match{}, err
	}
	if hex := strings.TrimPrefix(name, "sha256:"); fullHex.MatchString(hex) {
		for _, e := range all {
			if e.id() == "sha256:"+hex {
				return match{entry: e}, nil
			}
		}
		return match{}, errNoImage(name)
	}
	notFound := errNoImage(name)
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		named = reference.TagNameOnly(named)
		if m, ok := findNamed(all, named); ok {
			return m, nil
		}
		notFound = errNoImage(reference.FamiliarString(named))
	} else if !strings.HasPrefix(name, "sha256:") {
		return match{}, errInvalid("invalid reference format: %q", name)
	}
	if hex := strings.TrimPrefix(name, "sha256:"); shortHex.MatchString(hex) {
		var found []entry
		for _, e := range all {
			if strings.HasPrefix(e.target.Digest.Encoded(), hex) {
				found = append(found, e)
			}
		}
		switch len(found) {
		case 1:
			return match{entry: found[0]}, nil
		case 0:
			return match{}, errNoImage(name)
		default:
			return match{}, errInvalid("ambiguous reference: %q is the beginning of %d image IDs; give more of it", name, len(found))
		}
	}
	return match{}, notFound
}

// findNamed finds a record by its reference, or, for name@digest, an image of
// that repository with that digest under whatever tag.
func findNamed(all []entry, named reference.Named) (match, bool) {
	for _, e := range all {
		for _, record := range e.names {
			if record == named.String() {
				return match{entry: e, ref: record}, true
			}
		}
	}
	canonical, ok := named.(reference.Canonical)
	if !ok {
		return match{}, false
	}
	for _, e := range all {
		if e.target.Digest != canonical.Digest() {
			continue
		}
		for _, record := range e.names {
			if r, err := reference.ParseNormalizedNamed(record); err == nil && r.Name() == named.Name() {
				return match{entry: e, ref: record}, true
			}
		}
	}
	return match{}, false
}

// record points a name at a target. The image that had the name before stays,
// dangling when it has no other. It reports whether anything changed.
func (s *Store) record(ctx context.Context, name string, target ocispec.Descriptor) (bool, error) {
	s.names.Lock()
	defer s.names.Unlock()
	target = plain(target)
	old, err := s.images.Get(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		if _, err := s.images.Create(ctx, images.Image{Name: name, Target: target}); err != nil {
			return false, err
		}
	case err != nil:
		return false, err
	case old.Target.Digest == target.Digest:
		return false, nil
	default:
		// The dangling record comes first, so that no crash loses the image.
		if err := s.keep(ctx, old.Target, name); err != nil {
			return false, err
		}
		if _, err := s.images.Update(ctx, images.Image{Name: name, Target: target}, "target"); err != nil {
			return false, err
		}
	}
	if name != danglingPrefix+target.Digest.String() {
		err := s.images.Delete(ctx, danglingPrefix+target.Digest.String())
		if err != nil && !errdefs.IsNotFound(err) {
			return true, err
		}
	}
	return true, nil
}

// keep gives a target a dangling record unless it has a name besides except.
// The caller holds names.
func (s *Store) keep(ctx context.Context, target ocispec.Descriptor, except string) error {
	all, err := s.images.List(ctx)
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.Target.Digest == target.Digest && r.Name != except {
			return nil
		}
	}
	_, err = s.images.Create(ctx, images.Image{Name: danglingPrefix + target.Digest.String(), Target: target})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// familiar is how users know a full reference.
func familiar(full string) string {
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return full
	}
	return reference.FamiliarString(named)
}

// tagsAndDigests are RepoTags and RepoDigests of the API.
func (e entry) tagsAndDigests() (tags, digests []string) {
	tags, digests = []string{}, []string{}
	seen := map[string]bool{}
	for _, full := range e.names {
		named, err := reference.ParseNormalizedNamed(full)
		if err != nil {
			continue
		}
		if _, ok := named.(reference.Tagged); ok {
			if _, pinned := named.(reference.Canonical); !pinned {
				tags = append(tags, reference.FamiliarString(named))
			}
		}
		if d, err := reference.WithDigest(reference.TrimNamed(named), e.target.Digest); err == nil {
			if f := reference.FamiliarString(d); !seen[f] {
				seen[f] = true
				digests = append(digests, f)
			}
		}
	}
	return tags, digests
}

// tagTarget is the full reference that a new name stands for. It has a tag.
func tagTarget(name string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, errInvalid("invalid reference format: %q: %s", name, err)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, errInvalid("refusing to create a tag with a digest reference: %q", name)
	}
	return reference.TagNameOnly(named).(reference.NamedTagged), nil
}

func familiarNames(full []string) []string {
	out := make([]string, len(full))
	for i, name := range full {
		out[i] = familiar(name)
	}
	return out
}
