// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"regexp"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
	"holdfast/internal/lookup"
)

// danglingPrefix begins the name of the record of an image without a name. No
// valid reference begins like this.
const danglingPrefix = "<none>@"

var (
	fullHex  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	shortHex = regexp.MustCompile(`^[0-9a-f]{4,64}$`)
)

func isDigest(s string) bool { return digest.Digest(s).Validate() == nil }

// entry is one image: a target and all of its names.
type entry struct {
	target  ocispec.Descriptor
	names   []string // full references, sorted; without the dangling record's name
	records []string // names of all records
	updated time.Time
}

func (e entry) id() string { return e.target.Digest.String() }

// catalog has the records of images: which name refers to which target.
type catalog struct {
	env
	images   images.Store
	contents *contents
	layers   *layers
	requests *requests
	onEvent  func(action, id, name string, attrs map[string]string)

	// names is held while the records of images are changed.
	names sync.Mutex
}

// entries groups the records by target, newest record first.
func (ca *catalog) entries(ctx context.Context) ([]entry, error) {
	records, err := ca.images.List(ctx)
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

// match is the image that a user's name refers to.
type match struct {
	entry
	// ref is the name of the record, or empty if the image was named by ID.
	ref string
}

// find looks up a name: a full or familiar reference, with a tag or digest, or
// a whole or abbreviated ID, with or without "sha256:".
func (ca *catalog) find(ctx context.Context, name string) (match, error) {
	all, err := ca.entries(ctx)
	if err != nil {
		return match{}, err
	}
	notFound := errNoImage(name)
	hex := strings.TrimPrefix(name, "sha256:")
	named, err := reference.ParseNormalizedNamed(name)
	switch {
	case fullHex.MatchString(hex):
		named = nil // no image name looks like this
	case err == nil:
		named = reference.TagNameOnly(named)
		if !shortHex.MatchString(hex) {
			notFound = errNoImage(reference.FamiliarString(named))
		}
	case !strings.HasPrefix(name, "sha256:"):
		return match{}, errs.Invalid("%s", err)
	}
	byHex := func(yield func(string, match) bool) {
		for _, e := range all {
			if shortHex.MatchString(hex) && !yield(e.target.Digest.Encoded(), match{entry: e}) {
				return
			}
		}
	}
	m, err := lookup.Find(hex, lookup.In[match]{
		ID: func(id string) (match, bool) {
			for _, e := range all {
				if e.id() == "sha256:"+id {
					return match{entry: e}, true
				}
			}
			return match{}, false
		},
		Name: func(string) (match, bool) {
			if named == nil {
				return match{}, false
			}
			return findNamed(all, named)
		},
		All: byHex,
	})
	switch {
	case errors.Is(err, lookup.ErrSeveral):
		return match{}, errs.Invalid("ambiguous reference: %q is the beginning of several image IDs; give more of it", name)
	case err != nil:
		return match{}, notFound
	}
	return m, nil
}

// findNamed finds the image that a reference names. For name@digest that is an
// image of the repository with this digest, under any tag.
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

// record points a name at a target. The image that had the name before is kept;
// without another name it becomes dangling. record reports whether anything
// changed.
func (ca *catalog) record(ctx context.Context, name string, target ocispec.Descriptor) (bool, error) {
	ca.names.Lock()
	defer ca.names.Unlock()
	target = plain(target)
	old, err := ca.images.Get(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		if _, err := ca.images.Create(ctx, images.Image{Name: name, Target: target}); err != nil {
			return false, err
		}
	case err != nil:
		return false, err
	case old.Target.Digest == target.Digest:
		return false, nil
	default:
		// The dangling record is written first, so that a crash does not lose
		// the image.
		if err := ca.recordDangling(ctx, old.Target, name); err != nil {
			return false, err
		}
		if _, err := ca.images.Update(ctx, images.Image{Name: name, Target: target}, "target"); err != nil {
			return false, err
		}
	}
	if name != danglingPrefix+target.Digest.String() {
		err := ca.images.Delete(ctx, danglingPrefix+target.Digest.String())
		if err != nil && !errdefs.IsNotFound(err) {
			return true, err
		}
	}
	return true, nil
}

// recordUnnamed records a target that has no name as an image.
func (ca *catalog) recordUnnamed(ctx context.Context, target ocispec.Descriptor) error {
	ca.names.Lock()
	defer ca.names.Unlock()
	return ca.recordDangling(ctx, target, "")
}

// recordDangling writes a dangling record for a target unless it has a name other than
// except. The caller holds names.
func (ca *catalog) recordDangling(ctx context.Context, target ocispec.Descriptor, except string) error {
	all, err := ca.images.List(ctx)
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.Target.Digest == target.Digest && r.Name != except {
			return nil
		}
	}
	_, err = ca.images.Create(ctx, images.Image{Name: danglingPrefix + target.Digest.String(), Target: target})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// familiar shortens a full reference to the form that users know.
func familiar(full string) string {
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return full
	}
	return reference.FamiliarString(named)
}

// tagsAndDigests returns the API's RepoTags and RepoDigests.
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

// tagTarget parses a new name. It returns a full reference with a tag.
func tagTarget(name string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, errs.Invalid("%s", err)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, errs.Invalid("refusing to create a tag with a digest reference: %q", name)
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
